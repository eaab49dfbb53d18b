"""The chapters keep the rules of tools/checks.py, and every rule is shown to be able to fail."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import chapters, checks, tables
from tools.first_cell import FIRST_CELL, ROOT

pytest_plugins = ["pytester"]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rule(path, check):
    assert check(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_script_and_notebook_are_in_step(path):
    assert essence(jupytext.read(path.with_suffix(".py"))) == essence(nbformat.read(path, as_version=4))


def test_contents_list_every_chapter():
    listed = re.findall(r"file: (notebooks/\S+)", (ROOT / "book/_toc.yml").read_text())
    assert sorted(listed) == [f"notebooks/{path.stem}" for path in CHAPTERS]


def test_protocol_page_shows_the_presets_of_the_code():
    assert tables.PROTOCOL_PART.read_text() == tables.protocol_part()


def test_the_repository_is_named_in_one_place():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    named = [p.name for folder in ("tools", "wsol_lib") for p in (ROOT / folder).rglob("*.py") if url in p.read_text()]
    assert named == []
    assert url in FIRST_CELL


def essence(notebook):
    kept = ("tags", "mystnb")
    return [(c.cell_type, c.source, {k: c.metadata[k] for k in kept if k in c.metadata}) for c in notebook.cells]


PROSE = """# A chapter

## Objectives

Ten minutes on two cores; needs nothing.

1. See one thing.
2. Do another.
3. Judge a third.

## Exercises

### Exercise 1: predict

<details><summary>Solution</summary>

One.

</details>

### Exercise 2: implement

<details><summary>Solution</summary>

Two.

</details>

### Exercise 3: investigate

<details><summary>Solution</summary>

Three.

</details>

## Summary

The score is 61.73, one method gets 54.6 where

another got 60.41 (cited: Table 3 of the paper)."""


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def good():
    """A small chapter that keeps every rule."""
    shown = new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"})
    cells = [
        code(FIRST_CELL),
        code("print(61.7312)\nassert True", stream("61.7312\n54.5678\n")),
        code("gallery(images, alt='A bird.')\nassert True", shown),
        code("data = load('cub-50', 'test')", tags=["needs:cub"]),
        code("print(fit(data))", stream("88\n"), tags=["needs:cub", "nbval-ignore-output"]),
        code("assert len(data) > 3", tags=["needs:cub"]),
    ]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    return new_notebook(cells=[new_markdown_cell(PROSE), *cells])


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_a_good_chapter_passes(check):
    assert check(good()) == []


def prose(old, new):
    def plant(notebook):
        assert old in notebook.cells[0].source
        notebook.cells[0].source = notebook.cells[0].source.replace(old, new)

    return plant


def cell(number, **changes):
    def plant(notebook):
        checks.code_cells(notebook)[number].update(changes)

    return plant


def tagged(number, *tags):
    return cell(number, metadata=nbformat.from_dict({"tags": list(tags)}))


HTML_WITHOUT_ALT = new_output("display_data", data={"text/html": '<img src="data:image/png;base64,aa" alt="">'})
SLIDER = new_output("display_data", data={"text/html": '<div class="wsol-slider"></div>'})

PLANTED = [
    (checks.executed_in_order, cell(2, execution_count=None)),
    (checks.executed_in_order, cell(2, execution_count=7)),
    (checks.executed_in_order, cell(0, execution_count=2)),
    (checks.no_error_stored, cell(1, outputs=[new_output("error", ename="KeyError", evalue="", traceback=[])])),
    (checks.no_error_stored, cell(1, outputs=[stream("UserWarning: 1234", "stderr")])),
    (checks.images_have_alt_text, cell(2, source="gallery(images)")),
    (checks.images_have_alt_text, cell(2, source="gallery(images, alt=' ')")),
    (checks.images_have_alt_text, cell(2, outputs=[HTML_WITHOUT_ALT])),
    (checks.no_myst_in_cells, prose("See one thing.", "See {doc}`other`.")),
    (checks.no_myst_in_cells, prose("## Summary", ":::{note}\nhello\n:::\n\n## Summary")),
    (checks.no_myst_in_cells, prose("## Summary", "```{figure} a.png\n```\n\n## Summary")),
    (checks.no_myst_in_cells, prose("## Summary", "(target)=\n## Summary")),
    (checks.first_cell_is_standard, cell(0, source="from wsol_lib import setup\nsetup(seed=1)")),
    (checks.first_cell_is_standard, tagged(0, "hide-input")),
    (checks.has_the_parts_of_a_chapter, prose("# A chapter", "A chapter")),
    (checks.has_the_parts_of_a_chapter, prose("3. Judge a third.\n", "")),
    (checks.has_the_parts_of_a_chapter, prose("Ten minutes on two cores; needs nothing.", "")),
    (checks.has_the_parts_of_a_chapter, prose("### Exercise 3: investigate", "")),
    (checks.has_the_parts_of_a_chapter, prose("<details><summary>Solution</summary>\n\nThree.", "Three.")),
    (checks.has_the_parts_of_a_chapter, prose("## Summary", "## Goodbye")),
    (checks.asserts_its_claims, cell(5, source="len(data) > 3")),
    (checks.prose_numbers_are_produced, prose("61.73", "61.75")),
    (checks.prose_numbers_are_produced, prose("The score", "In 12 per cent the score")),
    (checks.prose_numbers_are_produced, prose("(cited: Table 3 of the paper)", "")),
    (checks.trained_scores_are_not_compared, tagged(4, "needs:cub")),
    (checks.trained_scores_are_not_compared, cell(5, source="len(data)")),
    (checks.trained_scores_are_not_compared, cell(2, outputs=[SLIDER])),
    (checks.cells_are_short_and_plain, cell(2, source="x = 1\n" * 15)),
    (checks.cells_are_short_and_plain, cell(2, source="!ls")),
    (checks.cells_are_short_and_plain, cell(2, source="%matplotlib inline\nx = 1")),
    (checks.cells_are_short_and_plain, cell(2, source="plt.plot(x);")),
    (checks.cells_are_short_and_plain, cell(2, source="")),
    (checks.needs_are_inherited, tagged(5)),
    (checks.needs_are_inherited, tagged(3, "needs:moon")),
    (checks.is_portable, cell(1, outputs=[stream("read /home/me/data.zip")])),
    (checks.is_portable, cell(1, outputs=[stream("x" * 6_000_000)])),
]


@pytest.mark.parametrize(("check", "plant"), PLANTED, ids=lambda part: getattr(part, "__name__", ""))
def test_a_planted_fault_is_found(check, plant):
    notebook = good()
    plant(notebook)
    assert check(notebook) != []


def test_every_rule_has_a_planted_fault():
    assert {check for check, _ in PLANTED} == set(checks.CHECKS)


def test_numbers_in_formulas_and_code_are_not_prose():
    notebook = good()
    notebook.cells[0].source += "\n\nWith $x = 9.87$ and `tau=9.86`, see [this](9.85) or https://x.org/9.84."
    assert checks.prose_numbers_are_produced(notebook) == []


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "01_small.py"
    path.write_text(f"# %% [markdown]\n# # Small\n\n# %%\nfrom wsol_lib import setup\n\n{body}")
    return path


@pytest.mark.slow
def test_chapters_are_executed_and_stored_alike_twice(tmp_path):
    path = script(tmp_path, '# %% {"tags": ["nbval-ignore-output"]}\nprint(6 * 7)\n')
    stored = []
    for _ in range(2):
        notebook = chapters.read(path)
        chapters.execute(notebook, tmp_path)
        chapters.write(notebook, path)
        stored.append((path.read_text(), path.with_suffix(".ipynb").read_text()))
    kept = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert stored[0] == stored[1]
    assert kept.cells[1].source == FIRST_CELL
    assert kept.cells[2].outputs[0].text == "42\n"
    assert checks.tags(kept.cells[2]) == {"nbval-ignore-output"}
    assert essence(jupytext.read(path)) == essence(kept)


def test_a_chapter_without_the_first_cell_is_refused(tmp_path):
    path = tmp_path / "01_small.py"
    path.write_text("# %%\nprint(1)\n")
    with pytest.raises(SystemExit, match="first_cell"):
        chapters.read(path)


@pytest.mark.slow
def test_cells_that_need_absent_data_are_skipped_and_counted(pytester, monkeypatch):
    monkeypatch.setenv("WSOL_DATA", str(pytester.path))
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    notebook = new_notebook(
        cells=[
            code("x = 1"),
            code("import nothing_there", tags=["needs:cub"]),
            code("import nothing_there", tags=["needs:cub"]),
            code("print(x)", stream("1\n")),
            code("print(x)", stream("2\n")),
        ]
    )
    for count, one in enumerate(notebook.cells, start=1):
        one.execution_count = count
    nbformat.write(notebook, pytester.path / "small.ipynb")
    result = pytester.runpytest_subprocess("--nbval", "--nbval-current-env", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, skipped=2, failed=1)
    result.stdout.fnmatch_lines(["*2 cells skipped: needs cub: it is not in *", "*small.ipynb: * s of 120*"])
