"""What each half of TS-CAM's map is worth: the attention, the semantic map of the true class, and their product.

    python -m tools.halves scenes/ts-cam cub/ts-cam-lite0 --to results/attention_halves.json --seeds 0

`scores` holds GT-known of each. Runs that are finished in --out are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import typer
from torch import Tensor

from wsol_lib import tune_process

tune_process()

import torch  # noqa: E402

from wsol_lib import engine  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
from wsol_lib.methods.ts_cam import TSCAM  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.types import Batch, Localization, Localizer, RecipeError  # noqa: E402

Half = Literal["attention", "semantics", "coupled"]


class OneHalf(Localizer):
    """A trained TS-CAM that shows one half of its map."""

    def __init__(self, model: TSCAM, part: Half) -> None:
        super().__init__()
        self.model, self.part = model, part

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the whole."""
        return self.model.losses(batch)

    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """The logits of the whole, and the half's map of each label."""
        if self.part == "coupled":
            return self.model.localize(images, labels)
        attention, semantics = self.model.look(images)
        half = attention if self.part == "attention" else semantics[torch.arange(len(images)), labels]
        return Localization(semantics.mean((2, 3)), half)


def halves(recipe: Recipe, out: Path) -> dict[str, Any]:
    """GT-known of the halves of a run of TS-CAM, with the floors of the whole."""
    result = engine.run(recipe, out, progress=False)
    if not isinstance(result.localizer, TSCAM):
        raise RecipeError(f"{recipe.name} ends with no TS-CAM, whose map has two halves")
    dataset, protocol = engine.evaluation_data(recipe)
    judges = {
        half: engine.evaluate(OneHalf(result.localizer, half), dataset, protocol, progress=False)
        for half in get_args(Half)
    }
    return {
        **(result.results or {}),
        "scores": {half: judge.compute().gt_known for half, judge in judges.items()},
        "intervals": {half: judge.interval("gt_known") for half, judge in judges.items()},
    }


main = grid_command(
    halves, "Train what is not trained yet, and measure. Cells that the file holds are kept as they are."
)


if __name__ == "__main__":
    typer.run(main)
