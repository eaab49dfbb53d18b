"""What tests and chapters share: where the real data are, a skip with its reason where they are absent, time limits.

A test says what it needs by `@pytest.mark.needs("tiny-imagenet")`, a chapter's cell by the tag `needs:tiny-imagenet`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from wsol_lib import tune_process

ROOT = Path(__file__).parent
DATA_SETS = {"tiny-imagenet": "tiny-imagenet", "cub": "cub-50", "ilsvrc": "ilsvrc-mini"}  # what a need stands for
CELL_TIMEOUT = 300.0  # seconds; nbval's own default is 2000
CHAPTER_BUDGET = 120  # seconds on two cores; reported, not enforced, because machines differ

tune_process()

# A chapter's kernel starts in notebooks/, where a relative path means another folder.
if os.environ.get("WSOL_DATA"):
    os.environ["WSOL_DATA"] = str(Path(os.environ["WSOL_DATA"]).resolve())


def missing(need: str) -> str | None:
    """Why a need is not met on this machine, or None where it is."""
    if need == "network":
        return None if os.environ.get("WSOL_NETWORK") else f"needs {need}: WSOL_NETWORK is not set"
    from wsol_lib.data import available, data_root

    root = data_root(None)
    if need in DATA_SETS:
        found = available(DATA_SETS[need], root)
    else:
        found = any((root / name).exists() for name in (need, f"{need}.zip"))
    return None if found else f"needs {need}: it is not in {root}"


def cell_needs(item: pytest.Item) -> list[str]:
    """What a chapter's cell needs, from its tags; nothing for an ordinary test."""
    tags = item.cell.metadata.get("tags", []) if hasattr(item, "cell") else []
    return [tag.removeprefix("needs:") for tag in tags if tag.startswith("needs:")]


def pytest_configure(config: pytest.Config) -> None:
    """Shorten the time limit of a cell, unless the command line sets one."""
    if getattr(config.option, "nbval_cell_timeout", None) == 2000:
        config.option.nbval_cell_timeout = CELL_TIMEOUT


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine has no data for."""
    for need in [mark.args[0] for mark in item.iter_markers("needs")] + cell_needs(item):
        reason = missing(need)
        if reason:
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cells were skipped and why, and how long each chapter took."""
    stats = terminalreporter.stats
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in stats.get("skipped", [])
        if ".ipynb::" in report.nodeid and isinstance(report.longrepr, tuple)
    )
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in [r for outcome in ("passed", "failed") for r in stats.get(outcome, [])]:
        if ".ipynb::" in report.nodeid:
            seconds[report.nodeid.split("::")[0]] += report.duration
    if seconds or skipped:
        terminalreporter.section("chapters")
    for reason, count in sorted(skipped.items()):
        terminalreporter.line(f"{count} {'cell' if count == 1 else 'cells'} skipped: {reason}")
    for chapter, time in sorted(seconds.items()):
        terminalreporter.line(
            f"{chapter}: {time:.0f} s of {CHAPTER_BUDGET}" + (" OVER" if time > CHAPTER_BUDGET else "")
        )


@pytest.fixture(scope="session")
def wsol_data() -> Path:
    """The folder that WSOL_DATA names."""
    if not os.environ.get("WSOL_DATA"):
        pytest.skip("WSOL_DATA is not set")
    return Path(os.environ["WSOL_DATA"])
