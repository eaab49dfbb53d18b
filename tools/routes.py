"""One trained TeD-Loc, or a CLIP, read in several ways: by which map, and whose.

    python -m tools.routes scenes/ted-loc scenes/clip-es --to results/routes.json --seeds 0,1,2,3,4

`scores` are those of the run, and those of each other reading under its name, such as "anchors gt_known". Readings of
TeD-Loc: its own, which is g; "anchors", the map of the true class; "named", the map of the class it predicts. Of a
CLIP: its own, of the true class, and "named". Runs that are finished in --out are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from torch import Tensor

from wsol_lib import tune_process

tune_process()

from wsol_lib import engine  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
from wsol_lib.methods.ted_loc import TeDLoc  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.types import Localization, Localizer  # noqa: E402

TOLD = ("gt_known", "max_box_acc", "max_box_acc_v2", "top1_loc", "top5_loc", "pxap")


class Named(Localizer):
    """A method that is not told the label: it draws the map of the class that it predicts."""

    uses_labels = False

    def __init__(self, model: Localizer) -> None:
        super().__init__()
        self.model = model

    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Of the predicted class; labels are not looked at."""
        return self.model.localize(images)


def routes(recipe: Recipe, out: Path) -> dict[str, Any]:
    """The results of a run, and the scores and intervals of its other readings."""
    result = engine.run(recipe, out, progress=False)
    found, model = dict(result.results or {}), result.localizer
    readings: dict[str, Localizer] = {"named": Named(model)}
    if isinstance(model, TeDLoc):
        model.route = "anchors"
        readings["anchors"] = model
    dataset, protocol = engine.evaluation_data(recipe)
    for name, reading in readings.items():
        judge = engine.evaluate(reading, dataset, protocol, progress=False)
        scores = judge.compute().as_dict()
        found["scores"] = found["scores"] | {f"{name} {score}": scores[score] for score in TOLD}
        found["intervals"] = found["intervals"] | {f"{name} gt_known": judge.interval("gt_known")}
    return found


main = grid_command(
    routes, "Train what is not trained yet, and measure. Cells that the file holds are kept as they are."
)


if __name__ == "__main__":
    typer.run(main)
