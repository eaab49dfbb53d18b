"""Comparisons: recipes, settings and seeds crossed, run one by one, and summed up with intervals."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from tqdm.auto import tqdm

from wsol_lib import distributed
from wsol_lib.checkpoint import write_text
from wsol_lib.engine import digest, run
from wsol_lib.recipe import Recipe, load_recipe
from wsol_lib.types import RecipeError, nearest

SCORES = (
    "gt_known", "gt_known_multi", "max_box_acc", "max_box_acc_v2", "top1_loc", "top5_loc", "top1_cls", "pxap", "piou",
    "recall", "calibration_error",
)  # fmt: skip


def axis(text: str) -> tuple[str, list[str]]:
    """A key and the values it takes, from `KEY=A,B,C`; commas inside brackets do not separate.

    Raises:
        RecipeError: no such form.
    """
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise RecipeError(f"cannot read {text!r}: write KEY=A,B,C, such as data.options.context_bias=0,0.5,1")
    depth, parts = 0, [""]
    for sign in values:
        depth += (sign in "[{") - (sign in "]}")
        parts = [*parts, ""] if sign == "," and depth == 0 else [*parts[:-1], parts[-1] + sign]
    return key, parts


def cells(
    recipes: Sequence[str], overrides: Sequence[str], axes: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """Every recipe at every setting with every seed, and the setting that names it."""
    for source, values, seed in itertools.product(recipes, itertools.product(*axes.values()), seeds):
        setting = dict(zip(axes, values, strict=True))
        chosen = [*overrides, *(f"{key}={value}" for key, value in setting.items()), f"seed={seed}"]
        yield {"recipe": source, **setting}, load_recipe(source, chosen)


def asked(
    recipes: Sequence[str], overrides: Sequence[str], vary: Sequence[str], seeds: str
) -> list[tuple[dict[str, Any], Recipe]]:
    """`cells` from what is typed on a command line: axes as `axis` reads them, and seeds such as "0,1,2".

    Raises:
        RecipeError: an axis or the seeds cannot be read, or a recipe is wrong.
    """
    numbers = seeds.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise RecipeError(f"cannot read the seeds {seeds!r}: write numbers separated by commas, such as 0,1,2")
    return list(cells(recipes, overrides, dict(axis(text) for text in vary), [int(number) for number in numbers]))


def collect(
    grid: Sequence[tuple[dict[str, Any], Recipe]], file: Path, measure: Callable[[Recipe], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Measure every cell of a grid and keep all results in one JSON file, written after each cell.

    Cells that the file holds already are not measured again: they are known by the whole recipe, the seed included.

    Returns:
        What `store` takes: digest of the recipe -> its `setting` and what `measure` gave.
    """
    finished: dict[str, dict[str, Any]] = {}
    if file.is_file():
        finished = json.loads(file.read_text(encoding="utf-8"))["cells"]
    hidden = None if distributed.rank() == 0 else True
    for setting, recipe in tqdm(grid, "cells", disable=hidden):
        key = digest(recipe.model_dump(mode="json"))
        if key not in finished:
            finished[key] = {"setting": setting, **measure(recipe)}
            store(file, finished)
    return finished


def compare(
    grid: Sequence[tuple[dict[str, Any], Recipe]], file: Path, *, out: str | Path = "runs", device: str | None = None
) -> dict[str, Any]:
    """Run every cell of a grid that a JSON file does not hold yet, and keep all results there; see `collect`.

    Args:
        grid: as `cells` gives it.
        file: the JSON file; its folder is made if need be.
        out: folder of all runs, where finished stages are shared.

    Returns:
        What the file holds: `cells`, and `summary` as `summarise` gives it.
    """

    def measure(recipe: Recipe) -> dict[str, Any]:
        result = run(recipe, out, device=device, progress=False)
        if result.results is None:
            raise RecipeError(f"{recipe.name} measures nothing: give it the key evaluate")
        return result.results

    finished = collect(grid, file, measure)
    return {"cells": finished, "summary": summarise(finished.values())}


def store(file: Path, finished: Mapping[str, dict[str, Any]]) -> None:
    """Write the finished cells of a comparison with their summary: the file that `compare` keeps and `read` reads.

    Args:
        file: its folder is made if need be.
        finished: digest of the cell's recipe -> its `setting` and what `results.json` holds.
    """
    contents = {"cells": finished, "summary": summarise(finished.values())}
    write_text(file, json.dumps(contents, indent=2) + "\n")


def summarise(finished: Any) -> list[dict[str, Any]]:
    """For each setting, the mean of each score over seeds and the half width of its 95 % interval (Student's t).

    Cells of one setting whose recipes differ in more than the seed (other overrides) are summed up apart. The half
    width is None for one seed. Scores that are not known are left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in finished:
        alike = [cell["setting"], {**cell["recipe"], "seed": None}]
        groups.setdefault(json.dumps(alike, sort_keys=True), []).append(cell)
    return [_summary(group) for group in groups.values()]


def _summary(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns = {name: [cell["scores"].get(name) for cell in group] for name in SCORES}
    known = {name: values for name, values in columns.items() if None not in values}
    return {
        "setting": group[0]["setting"],
        "seeds": sorted(cell["seed"] for cell in group),
        "scores": {name: {"mean": statistics.fmean(v), "half_width": half_width(v)} for name, v in known.items()},
    }


def half_width(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Half the width of the interval of a mean, from Student's t; None for a single value."""
    if len(values) < 2:
        return None
    quantile = float(student.ppf((1 + confidence) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def told(values: NDArray[np.float64]) -> str:
    """Mean and half width of the 95 % interval of Float[seeds, at least 2], such as " 67.9 ±  4.5"."""
    return f"{values.mean():5.1f} ± {half_width(values.tolist()):4.1f}"


def with_floors(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`scores` and `intervals` of every row of a table: the trivial floors of the first cell, then the cells given.

    Args:
        measured: title -> cell of a comparison; all were measured on the same pictures by the same protocol.
    """
    floors = next(iter(measured.values()))["floors"]
    blank = {title: {"scores": scores, "intervals": {}} for title, scores in floors.items()}
    return blank | {
        title: {"scores": cell["scores"], "intervals": cell["intervals"]} for title, cell in measured.items()
    }


def score_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Boxes' scores as text, a row each: data and number of pictures, the floors, and the cells with a 95 % interval.

    Top-1 Loc stays empty for a method that names no class.

    Args:
        measured: as for `with_floors`.
    """
    first = next(iter(measured.values()))
    lines = [f"{first['data']}, n = {first['n']}", f"{'':18}MaxBoxAcc    V2    GT-known, 95 %        Top-1 Loc"]
    for title, row in with_floors(measured).items():
        scores, ends = row["scores"], row["intervals"].get("gt_known")
        line = f"{title:18} {scores['max_box_acc']:6.2f} {scores['max_box_acc_v2']:8.2f} {scores['gt_known']:7.2f}  "
        named = "" if scores["top1_loc"] is None else f" {scores['top1_loc']:9.2f}"
        lines.append(line + (f"[{ends[0]:.1f}, {ends[1]:.1f}]{named}" if ends else ""))
    return "\n".join(lines)


def read(name: str) -> dict[str, Any]:
    """A comparison that comes with the library, such as `cam_family_cub`: what `compare` wrote.

    Raises:
        RecipeError: there is none of that name; the text offers the nearest.
    """
    folder = Path(str(resources.files("wsol_lib"))) / "results"
    file = folder / f"{name}.json"
    if not file.is_file():
        raise RecipeError(
            f"there are no results {name!r}{nearest(name, [path.stem for path in folder.glob('*.json')])}"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def over_seeds(name: str, setting: Mapping[str, str]) -> dict[str, NDArray[np.float64]]:
    """Score -> Float[seeds] in per cent, over the cells of the comparison `name` with this very setting, by seed.

    Those of the trivial floors on the same pictures stand beside them, such as "centred Gaussian gt_known"; NaN where a
    score is unknown. Empty where there is no such cell.
    """
    alike = [cell for cell in read(name)["cells"].values() if cell["setting"] == setting]
    rows = [
        cell["scores"]
        | {f"{floor} {score}": value for floor, found in cell["floors"].items() for score, value in found.items()}
        for cell in sorted(alike, key=lambda cell: cell["seed"])
    ]
    return {score: np.array([row[score] for row in rows], float) for score in (rows[0] if rows else ())}
