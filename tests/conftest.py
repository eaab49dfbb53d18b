"""What all tests share: where the real data are, and a skip with its reason where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ARCHIVES = {
    "tiny-imagenet": "tiny-imagenet-200",
    "cub": "cub-50",
    "ilsvrc": "ilsvrc-val-mini",
    "wsol-metadata": "wsol-metadata",
    "clip-text": "clip-text",
}


def missing(need: str) -> str | None:
    """Why a need is not met on this machine, or None where it is."""
    root = os.environ.get("WSOL_DATA")
    if not root:
        return f"needs {need}: WSOL_DATA is not set"
    stem = ARCHIVES.get(need, need)
    if not any((Path(root) / name).exists() for name in (stem, f"{stem}.zip")):
        return f"needs {need}: there is no {stem} in {root}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        reason = missing(mark.args[0])
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def wsol_data() -> Path:
    """The folder that WSOL_DATA names."""
    if not os.environ.get("WSOL_DATA"):
        pytest.skip("WSOL_DATA is not set")
    return Path(os.environ["WSOL_DATA"])
