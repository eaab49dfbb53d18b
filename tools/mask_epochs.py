"""Does a score without labels choose a good epoch? Each epoch of a recipe's last stage, measured on boxes to compare.

    python -m tools.mask_epochs scenes/weight-map --seeds 0,1,2,3,4 --to results/weight_map_epochs.json

The measuring has no say in the training: the stage keeps the epoch that its own score chose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsol_lib import tune_process

tune_process()

from wsol_lib import engine, grid  # noqa: E402
from wsol_lib.cli import Out, Recipes, Seeds, Set, To, Vary  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.training import History  # noqa: E402
from wsol_lib.types import Localizer  # noqa: E402


class Observer(engine.Callback):
    """Notes in the history what boxes and masks of the measured split say of each epoch."""

    def __init__(self, recipe: Recipe, limit: int) -> None:
        self.dataset, self.protocol = engine.evaluation_data(recipe)
        self.limit = limit

    def after_epoch(self, epoch: int, localizer: Localizer, history: History) -> None:
        """Measure the method as it is now."""
        judge = engine.evaluate(localizer, self.dataset, self.protocol, limit=self.limit, progress=False)
        scores = judge.compute()
        names = ("gt_known", "pxap", "top1_cls", "n")
        history.epochs[-1] |= {name: getattr(scores, name) for name in names}


def observe(recipe: Recipe, limit: int, out: Path) -> dict[str, Any]:
    """Run a recipe; its results, and its epochs as measured."""
    last = recipe.stages[-1].name
    result = engine.run(recipe, out, callbacks={last: [Observer(recipe, limit)]})
    assert result.results is not None
    epochs = result.histories[last].epochs
    if "gt_known" not in epochs[0]:
        raise SystemExit(f"{recipe.name}, seed {recipe.seed}, was trained in {out} unobserved; give another --out")
    return {"epochs": epochs, **result.results}


def main(
    recipes: Recipes,
    to: To,
    seeds: Seeds = "0",
    overrides: Set = None,
    vary: Vary = None,
    limit: Annotated[int, typer.Option(help="How many pictures to measure an epoch on, evenly spread.")] = 500,
    out: Out = Path("runs"),
) -> None:
    """Run recipes with several seeds and note every epoch. Cells that the file holds are kept as they are."""
    grid.collect(
        grid.asked(recipes, overrides or (), vary or (), seeds), to, lambda recipe: observe(recipe, limit, out)
    )


if __name__ == "__main__":
    typer.run(main)
