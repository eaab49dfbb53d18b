"""How many pseudo boxes are right, threshold by threshold: what a threshold that was picked by boxes would be worth.

    python -m tools.pseudo_boxes cub/c2am-lite0 --beside cub/ddt-lite0 --to results/entropy_pseudo_cub.json

For each threshold the share of boxes, of the training and of the test pictures, that hit an object at IoU .5 (CorLoc).
These are looked up with true boxes, to report them; nothing is trained on them. Published corners are taken as they
are: where their ends are inclusive (Tiny-ImageNet), a box drawn exactly scores a little below 1.

`--beside` names a recipe with maps of its own: how much the boxes of the training pictures agree with its boxes of the
same pictures, for which no true box is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from wsol_lib import tune_process

tune_process()

from wsol_lib import data, engine, grid  # noqa: E402
from wsol_lib.boxes import iou  # noqa: E402
from wsol_lib.cli import Out, Recipes, Seeds, Set, To, Vary  # noqa: E402
from wsol_lib.data.dataset import WsolDataset  # noqa: E402
from wsol_lib.pseudo import Threshold, boxes_from_maps  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402

THRESHOLDS: tuple[Threshold, ...] = ("otsu", "zero", *(step / 20 for step in range(2, 19)))


def overlaps(drawn: list[Tensor], others: list[Tensor]) -> Tensor:
    """The best IoU Float[N] of each picture's drawn box, Float[1,4] or none, with any of its others Float[M,4]."""
    pairs = zip(drawn, others, strict=True)
    return torch.stack([iou(a, b).max() if len(a) and len(b) else a.new_zeros(()) for a, b in pairs])


def pictures(recipe: Recipe, split: str, **knobs: Any) -> WsolDataset:
    """A split of the data of a recipe, with its boxes, and with other options where they are given."""
    of_split = recipe.evaluate.options if split != "train" and recipe.evaluate else {}
    options = {"supervision": "oracle", **recipe.data.options, **of_split, **knobs}
    return data.load(recipe.data.name, split, size=recipe.data.size, **options)


def judge(recipe: Recipe, out: Path, beside: Recipe | None = None) -> dict[str, Any]:
    """CorLoc of the boxes of a recipe in both splits, by threshold, per cent; their mean IoU with those of `beside`."""
    result = engine.run(recipe, out, progress=False)
    assert recipe.evaluate is not None
    scores = {}
    for split in ("train", recipe.evaluate.split):
        seen = pictures(recipe, split)
        maps = engine.localize(result.localizer, seen, progress=False).maps
        truth = [seen.boxes(i) for i in range(len(seen))]
        others = reference(beside, seen, out) if beside is not None and split == "train" else None
        for threshold in THRESHOLDS:
            drawn = boxes_from_maps(maps, seen.image_sizes, threshold)
            scores[f"{split} {threshold}"] = 100 * (overlaps(drawn, truth) >= 0.5).double().mean().item()
            if others is not None:
                scores[f"agreement {threshold}"] = overlaps(drawn, others).double().mean().item()
    return {**(result.results or {}), "scores": scores, "floors": {}, "intervals": {}}


def reference(recipe: Recipe, seen: WsolDataset, out: Path) -> list[Tensor]:
    """Boxes of a recipe's maps of these pictures, where they are above 0."""
    unmeasured = recipe.model_copy(update={"evaluate": None})
    maps = engine.localize(engine.run(unmeasured, out, progress=False).localizer, seen, progress=False).maps
    return boxes_from_maps(maps, seen.image_sizes, "zero")


def main(
    recipes: Recipes,
    to: To,
    beside: Annotated[str | None, typer.Option(help="A recipe whose maps are cut at 0, to compare boxes with.")] = None,
    seeds: Seeds = "0",
    overrides: Set = None,
    vary: Vary = None,
    out: Out = Path("runs"),
) -> None:
    """Draw boxes at every threshold, and look how many are right. Cells that the file holds are kept as they are."""
    other = None if beside is None else engine.load_recipe(beside)
    cells = grid.asked(recipes, overrides or (), vary or (), seeds)
    grid.collect(cells, to, lambda recipe: judge(recipe, out, other))


if __name__ == "__main__":
    typer.run(main)
