"""What every chapter must keep to. Each check takes a notebook and gives a list of complaints, empty where all is well.

The rules and their reasons are in the names and docstrings; `tests/test_notebooks.py` applies all of `CHECKS` to every
chapter, and proves of each that it can fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

from tools.first_cell import FIRST_CELL
from tools.sphinx_pages import cell_alt

NEEDS = ("tiny-imagenet", "cub", "ilsvrc", "wsol-metadata", "clip-text", "network")
TRAINING_CALLS = {"fit", "run", "evaluate"}
MAX_LINES = 14  # "a dozen or so", blank lines not counted
MAX_BYTES = 6_000_000
MYST = re.compile(r"^\s*(:{3,}|`{3,}\{)|\{[a-z:]+\}`|^\([\w-]+\)=\s*$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*\.\d+(?!\.?\d)|(?<![\w.])\d+(?=\s?(?:%|per cent))")
NOT_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]*`|\]\([^)]*\)|https?://\S+", re.DOTALL)
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users)/\S+")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook: NotebookNode) -> str:
    """All prose, one blank line between cells."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tags(cell: NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def text_of(output: NotebookNode) -> str:
    """What an output says in words: streams, plain text, and HTML without its pictures."""
    page = re.sub(r"data:image/[^\"']+", "", output.get("data", {}).get("text/html", ""))
    return "\n".join([output.get("text", ""), output.get("data", {}).get("text/plain", ""), page])


def outputs_of(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
    """Number of the code cell, the cell and each of its outputs."""
    for number, cell in enumerate(code_cells(notebook)):
        for output in cell.outputs:
            yield number, cell, output


def has_assert(cell: NotebookNode) -> bool:
    """Whether a code cell asserts something."""
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


def executed_in_order(notebook: NotebookNode) -> list[str]:
    """Every code cell was executed, once, from the top, in a fresh kernel."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    wrong = [i for i, count in enumerate(counts) if count != i + 1]
    return [f"code cell {wrong[0]} has the execution count {counts[wrong[0]]}; run make chapters"] if wrong else []


def no_error_stored(notebook: NotebookNode) -> list[str]:
    """No stored output is an error, or a warning, whose text names paths and process numbers."""
    return [
        f"code cell {number} stores {output.get('ename', 'text on stderr')}"
        for number, _, output in outputs_of(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def images_have_alt_text(notebook: NotebookNode) -> list[str]:
    """Every picture says in words what it shows."""
    complaints = []
    for number, cell, output in outputs_of(notebook):
        data = output.get("data", {})
        pictures = re.findall(r"<img\b[^>]*>", data.get("text/html", ""))
        bare = any(not re.search(r'\balt="[^"]*\w[^"]*"', picture) for picture in pictures)
        if bare or (any(kind.startswith("image/") for kind in data) and not cell_alt(cell)):
            complaints.append(f"code cell {number} shows an image without alt text")
    return complaints


def no_myst_in_cells(notebook: NotebookNode) -> list[str]:
    """MyST directives and roles do not render in JupyterLab or Colab."""
    return [f"MyST in a cell: {found.group().strip()}" for found in MYST.finditer(markdown(notebook))]


def first_cell_is_standard(notebook: NotebookNode) -> list[str]:
    """The first code cell is the same everywhere, without tags."""
    cells = code_cells(notebook)
    if cells and cells[0].source == FIRST_CELL and not tags(cells[0]):
        return []
    return ["the first code cell is not the one of tools/first_cell.py"]


def has_the_parts_of_a_chapter(notebook: NotebookNode) -> list[str]:
    """A title, three objectives with their minutes and needs, three exercises with solutions, a summary."""
    text = markdown(notebook)
    objectives = re.search(r"^## Objectives\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    listed = objectives.group(1) if objectives else ""
    wanted = {
        "a title in the first cell": notebook.cells[0].source.startswith("# "),
        "three numbered objectives under ## Objectives": len(re.findall(r"^\d\. ", listed, re.MULTILINE)) == 3,
        "the minutes and the needs, among the objectives": "minutes" in listed and "needs" in listed.lower(),
        "three ### Exercise headings": len(re.findall(r"^### Exercise \d", text, re.MULTILINE)) == 3,
        "three solutions in <details>": text.count("<details>") >= 3 and text.count("<summary>Solution") >= 3,
        "a ## Summary": bool(re.search(r"^## Summary$", text, re.MULTILINE)),
    }
    return [f"the chapter lacks {part}" for part, there in wanted.items() if not there]


def asserts_its_claims(notebook: NotebookNode) -> list[str]:
    """At least three cells pin what the text claims."""
    count = sum(has_assert(cell) for cell in code_cells(notebook))
    return [] if count >= 3 else [f"only {count} cells assert something; a chapter pins at least three claims"]


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def prose_numbers_are_produced(notebook: NotebookNode) -> list[str]:
    """A decimal or percentage in the prose is in the code or outputs, rounded alike, or its paragraph cites a source.

    The citation reads `(cited: Choe et al., 2020)`, anywhere in the paragraph or the table.
    """
    produced = [cell.source for cell in code_cells(notebook)] + [text_of(out) for _, _, out in outputs_of(notebook)]
    values = [_value(number) for number in re.findall(r"\d[\d,]*\.?\d*", "\n".join(produced)) if number.strip(",.")]
    paragraphs = re.split(r"\n\s*\n", NOT_PROSE.sub(" ", markdown(notebook)))
    numbers = [n.group() for text in paragraphs if "(cited:" not in text for n in NUMBER.finditer(text)]
    return [f"{n} stands in the prose, but no cell produces it" for n in numbers if not _is_produced(n, values)]


def _is_produced(number: str, values: list[float]) -> bool:
    decimals = len(number.partition(".")[2])
    half = 0.5 * 10**-decimals + 1e-9
    return any(abs(value - _value(number)) <= half for value in values)


def trained_scores_are_not_compared(notebook: NotebookNode) -> list[str]:
    """What depends on the machine is tagged `nbval-ignore-output`, and an assert with a tolerance follows soon."""
    cells = code_cells(notebook)
    complaints = []
    for number, cell in enumerate(cells):
        ignored = "nbval-ignore-output" in tags(cell)
        said = "".join(text_of(output) for output in cell.outputs if "image/png" not in output.get("data", {}))
        slider = "wsol-slider" in said
        if (slider or (said.strip() and _calls(cell) & TRAINING_CALLS)) and not ignored:
            complaints.append(f"code cell {number} shows a trained score or a slider: tag it nbval-ignore-output")
        if ignored and not slider and said.strip() and not any(map(has_assert, cells[number : number + 4])):
            complaints.append(f"code cell {number} is not compared, and none of the next three cells asserts anything")
    return complaints


def _calls(cell: NotebookNode) -> set[str]:
    calls = [node.func for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    return {getattr(call, "attr", getattr(call, "id", "")) for call in calls}


def cells_are_short_and_plain(notebook: NotebookNode) -> list[str]:
    """A dozen lines a cell, pure Python (no magics, which nbval can pass wrongly), no trailing semicolon."""
    complaints = []
    for number, cell in enumerate(code_cells(notebook)[1:], start=1):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if len(lines) > MAX_LINES:
            complaints.append(f"code cell {number} has {len(lines)} lines, more than {MAX_LINES}")
        if not lines or any(line.lstrip().startswith(("!", "%")) for line in lines) or lines[-1].endswith(";"):
            complaints.append(f"code cell {number} is empty, has a magic command, or ends in a semicolon")
    return complaints


def needs_are_inherited(notebook: NotebookNode) -> list[str]:
    """A cell that uses what only a tagged cell defines carries the same tag: where that cell is skipped, so is this."""
    defined: dict[str, set[str]] = {}
    complaints = []
    for number, cell in enumerate(code_cells(notebook)):
        needs = {tag for tag in tags(cell) if tag.startswith("needs:")}
        complaints += [f"code cell {number}: unknown {n}" for n in needs if n.removeprefix("needs:") not in NEEDS]
        names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
        used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        wanted = set().union(*(defined.get(name, set()) for name in used))
        if wanted - needs:
            complaints.append(f"code cell {number} uses what needs {sorted(wanted - needs)}, but is not tagged so")
        for name in {node.id for node in names if isinstance(node.ctx, ast.Store)}:
            defined[name] = needs if name not in defined else needs & defined[name]
    return complaints


def is_portable(notebook: NotebookNode) -> list[str]:
    """No output names a folder of the machine that made it, and the file is small enough to open on a phone."""
    found = [LOCAL_PATH.search(text_of(output)) for _, _, output in outputs_of(notebook)]
    complaints = [f"an output names the path {match.group()}" for match in found if match]
    size = len(str(notebook))
    return complaints + ([f"the notebook has {size / 1e6:.1f} MB, more than 6"] if size > MAX_BYTES else [])


CHECKS: tuple[Callable[[NotebookNode], list[str]], ...] = (
    executed_in_order,
    no_error_stored,
    images_have_alt_text,
    no_myst_in_cells,
    first_cell_is_standard,
    has_the_parts_of_a_chapter,
    asserts_its_claims,
    prose_numbers_are_produced,
    trained_scores_are_not_compared,
    cells_are_short_and_plain,
    needs_are_inherited,
    is_portable,
)
