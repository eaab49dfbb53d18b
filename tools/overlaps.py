"""How well the boxes of a method fit, picture by picture, and at every threshold.

    python -m tools.overlaps scenes/ts-cam scenes/sat --to results/space_overlaps.json --seeds 0,1,2,3,4

Beside the scores of `wsol compare` a cell holds `ious`, the IoU of every picture's box at the threshold of the
protocol, in the order of the pictures, and `curve`: threshold, GT-known (per cent) at this threshold for all pictures.
Runs that are finished in --out are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from wsol_lib import tune_process

tune_process()

from wsol_lib import engine  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
from wsol_lib.metrics import Evaluator  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.types import RecipeError  # noqa: E402


def curve(judge: Evaluator) -> list[tuple[float, float]]:
    """Pairs of a threshold, each hundredth, and GT-known in per cent, where all pictures have this one."""
    shares = 100 * judge.hits().double().mean(0)  # [T]
    known = {round(float(tau), 4): share for tau, share in zip(judge.taus, shares.tolist(), strict=True)}
    return [(tau / 100, known[tau / 100]) for tau in range(101) if tau / 100 in known]


def overlaps(recipe: Recipe, out: Path) -> dict[str, Any]:
    """The results of a run of a recipe, the IoU of each of its boxes, and its curve."""
    result = engine.run(recipe, out, progress=False)
    ious = result.evaluator.ious() if result.evaluator else None
    if result.evaluator is None or ious is None:
        raise RecipeError(f"{recipe.name} measures no boxes: give it the key evaluate")
    return {
        **(result.results or {}),
        "ious": [round(iou, 3) for iou in ious.tolist()],
        "curve": curve(result.evaluator),
    }


main = grid_command(
    overlaps, "Train what is not trained yet, and measure. Cells that the file holds are kept as they are."
)


if __name__ == "__main__":
    typer.run(main)
