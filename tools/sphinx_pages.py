"""A small Sphinx extension: figures get the alt text of the code that draws them, and no page names a script of a CDN.

A chapter writes `gallery(..., alt="...")` once. Jupyter Book wants the text in the cell metadata `mystnb.image.alt`;
the extension puts it there while the page is read, so that no text is kept twice.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def cell_alt(cell: dict[str, Any]) -> str | None:
    """The alt text of the images that a code cell shows, or None where it names none.

    The metadata `{"mystnb": {"image": {"alt": "..."}}}` goes before the first literal `alt="..."` of the code.
    """
    if cell["cell_type"] != "code":
        return None
    written = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
    return written or _alt_in_code("".join(cell["source"]))


def _alt_in_code(source: str) -> str | None:
    if "alt=" not in source:
        return None
    keywords = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.keyword) and node.arg == "alt")
    values = (keyword.value.value for keyword in keywords if isinstance(keyword.value, ast.Constant))
    return next((value for value in values if isinstance(value, str) and value.strip()), None)


def add_alt(app: Sphinx, docname: str, source: list[str]) -> None:
    """Write the alt text of each code cell into its metadata."""
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        alt = cell_alt(cell)
        if alt:
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = alt
    source[0] = json.dumps(notebook)


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the scripts of thebe (live cells on the page): the book does not use them, and they name a CDN."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}".lower()]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", add_alt)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True}
