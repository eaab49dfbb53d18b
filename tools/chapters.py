"""Bring the chapters up to date: `python -m tools.chapters [ONLY ...]`, for example `python -m tools.chapters 02`.

For each chapter: the newer of `NN_name.py` and `NN_name.ipynb` gives the code, every cell is executed in order by a
fresh kernel, and the outputs are stored. What differs from run to run (times, versions) is left out, so that
a second run changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tools.first_cell import FIRST_CELL, ROOT

FOLDER = ROOT / "notebooks"
CELL_TIMEOUT = 300  # seconds; only a safety net, a whole chapter should take 120
KEPT = ("kernelspec", "jupytext")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PAIRING = {"formats": "ipynb,py:percent", "cell_metadata_filter": "tags,mystnb,-all"}


def newer_half(script: Path) -> Path:
    """The script, or the notebook beside it where that was changed later."""
    stored = script.with_suffix(".ipynb")
    return stored if stored.exists() and stored.stat().st_mtime > script.stat().st_mtime else script


def read(script: Path) -> NotebookNode:
    """The chapter with the code of its newer half, the standard first cell and the standard header."""
    newer = newer_half(script)
    notebook = jupytext.read(newer)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or "from wsol_lib import setup" not in code[0].source:
        raise SystemExit(f"chapters: the first code cell of {newer.name} must be the one in tools/first_cell.py")
    code[0].source = FIRST_CELL
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(KERNEL), jupytext=NotebookNode(PAIRING))
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    return notebook


def execute(notebook: NotebookNode, folder: Path = FOLDER) -> None:
    """Run every code cell in order in a fresh kernel and keep what it shows, in place.

    Raises:
        CellExecutionError: a cell failed.
    """
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(folder)}})
    client.execute()
    strip(notebook)


def strip(notebook: NotebookNode) -> None:
    """Drop what differs from run to run, and join the pieces of one stream, whose cuts depend on timing."""
    notebook.metadata = NotebookNode({key: notebook.metadata[key] for key in KEPT if key in notebook.metadata})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def write(notebook: NotebookNode, script: Path) -> None:
    """Write both halves of the pair; the notebook is put in place whole or not at all."""
    script.write_text(jupytext.writes(notebook, fmt="py:percent"))
    partial = script.with_suffix(".ipynb.partial")
    nbformat.write(notebook, partial)
    partial.replace(script.with_suffix(".ipynb"))


def main(only: list[str]) -> None:
    """Execute the chapters whose names start with one of `only`, or all."""
    if os.environ.get("WSOL_DATA"):
        os.environ["WSOL_DATA"] = str(Path(os.environ["WSOL_DATA"]).resolve())
    else:
        print("chapters: WSOL_DATA is not set; cells that need real data will look in data/ and may fail")
    scripts = [s for s in sorted(FOLDER.glob("[0-9]*.py")) if not only or s.name.startswith(tuple(only))]
    if not scripts:
        raise SystemExit(f"chapters: no chapter's name starts with {' or '.join(only)}")
    for script in scripts:
        start = time.monotonic()
        print(f"chapters: {script.stem}, code of {newer_half(script).name} ...", flush=True)
        notebook = read(script)
        try:
            execute(notebook)
        except CellExecutionError as error:
            raise SystemExit(f"chapters: {script.stem} stopped, nothing was stored\n{error}") from None
        write(notebook, script)
        print(f"chapters: {script.stem} {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
