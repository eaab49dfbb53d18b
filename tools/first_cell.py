"""The first code cell of every chapter. The repository's address comes from `_config.yml`."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]

FIRST_CELL = f"""\
import importlib.util, subprocess, sys

if importlib.util.find_spec("wsol_lib") is None:  # in Colab; the torch that is there stays
    source = "git+{REPOSITORY}"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])

from wsol_lib import setup

setup(seed=0)"""
