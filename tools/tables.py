"""Write the parts of the prose pages that come from the code: `python -m tools.tables`."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from tools.first_cell import ROOT
from wsol_lib.metrics import PROTOCOLS, Protocol

PROTOCOL_PART = ROOT / "book" / "_protocols.md"


def protocol_table() -> str:
    """Markdown: a row for each preset, a column for each choice that differs, the others in one sentence."""
    names = [field.name for field in fields(Protocol)]
    values = {name: [_cell(getattr(preset, name)) for preset in PROTOCOLS.values()] for name in names}
    shared = [f"`{name}` {cells[0]}" for name, cells in values.items() if len(set(cells)) == 1]
    differing = {name: cells for name, cells in values.items() if len(set(cells)) > 1}
    head = ["preset", *(f"`{name}`" for name in differing)]
    rows = [[f"`{key}`", *cells] for key, *cells in zip(PROTOCOLS, *differing.values(), strict=True)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])
    return f"{table}\nThe same in all: {'; '.join(shared)}.\n" if shared else table


def field_notes() -> str:
    """Markdown: what each field of a protocol means, as its docstring says."""
    arguments = inspect.getdoc(Protocol).partition("Args:\n")[2].partition("\n\n")[0]  # type: ignore[union-attr]
    notes = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", arguments, re.DOTALL | re.MULTILINE)
    return "\n".join(f"`{name}`\n: {' '.join(note.split())}\n" for name, note in notes)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def protocol_part() -> str:
    """The part of the protocol page that comes from the code."""
    return f"{protocol_table()}\nWhat the columns mean:\n\n{field_notes()}"


def write() -> None:
    """Bring the part up to date; an unchanged file is left alone, so that its page is not rendered again."""
    part = protocol_part()
    if not PROTOCOL_PART.exists() or PROTOCOL_PART.read_text() != part:
        PROTOCOL_PART.write_text(part)


if __name__ == "__main__":
    write()
