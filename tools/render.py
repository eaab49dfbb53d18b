"""Render the book: `python -m tools.render [TOC]`. Every warning is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools import tables
from tools.first_cell import ROOT


def main(toc: str = "book/_toc.yml") -> int:
    """Bring the generated tables up to date and run Jupyter Book; its exit status is returned."""
    tables.write()
    builder = Path(sys.executable).with_name("jupyter-book")
    command = [str(builder), "build", ".", "--toc", toc, "-W", "-n", "--keep-going", "-q"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
