"""How the boxes of a method are wrong on scenes, and what occlusion, mirrors and company do to the right ones.

    python -m tools.failures scenes/cam scenes/ts-cam --to results/failures.json --seeds 0,1,2

Each world of `WORLDS` draws the same test pictures with one knob turned. A threshold, where a method has maps, is
chosen on the val split by its boxes, once, and kept. For each world: the share of boxes of each kind
(`wsol_lib.failures`), the share of wrong names, and `lost`: of the pictures that were right before the knob was turned
those that no longer are. All in per cent; a picture with several animals is right if the box hits one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from wsol_lib import tune_process

tune_process()

from wsol_lib import data, engine, grid  # noqa: E402
from wsol_lib.cli import Out, Recipes, Seeds, Set, To, Vary  # noqa: E402
from wsol_lib.data.dataset import WsolDataset  # noqa: E402
from wsol_lib.failures import KINDS, kind  # noqa: E402
from wsol_lib.metrics import Protocol  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.types import Localizer  # noqa: E402

WORLDS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "occluded": {"occlusion": 0.5},
    "mirrored": {"reflection": 1.0},
    "two animals": {"instances": 2},
    "telling part twice as large": {"part_size": 0.6},
}


def scenes(recipe: Recipe, split: str, **knobs: Any) -> WsolDataset:
    """A split of the recipe's world with other knobs."""
    options = {**recipe.data.options, **(recipe.evaluate.options if recipe.evaluate else {}), **knobs}
    return data.load("scenes", split, size=recipe.data.size, **options)


def kinds_of(localizer: Localizer, dataset: WsolDataset, protocol: Protocol) -> tuple[list[str], float]:
    """The kind of each picture's surest box, and the share of wrong names."""
    found = engine.localize(localizer, dataset, progress=False)
    drawn = (
        [protocol.box(score_map) for score_map in found.maps] if found.boxes is None else [b[0] for b in found.boxes]
    )
    kinds = [kind(box.reshape(4).float(), dataset.boxes(i)) for i, box in enumerate(drawn)]
    named = found.logits.argmax(1) if found.logits is not None else dataset.labels
    return kinds, 100 * (named != dataset.labels).double().mean().item()


def protocol_with_threshold(localizer: Localizer, recipe: Recipe) -> Protocol:
    """The recipe's protocol with the threshold that is best on the val split."""
    _, protocol = engine.evaluation_data(recipe)
    tuned = replace(protocol, tau="best")
    tau = engine.evaluate(localizer, scenes(recipe, "val"), tuned, progress=False).compute().tau
    return replace(protocol, tau=0.5 if tau is None else tau)  # detectors have no threshold


def judge(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Kinds of failure of a run of a recipe, world by world."""
    result = engine.run(recipe, out, progress=False)
    protocol = protocol_with_threshold(result.localizer, recipe)
    scores, before = {}, []
    for world, knobs in WORLDS.items():
        kinds, misnamed = kinds_of(result.localizer, scenes(recipe, "test", **knobs), protocol)
        before = before or kinds
        was_right = [now for now, first in zip(kinds, before, strict=True) if first == "right"]
        lost = sum(now != "right" for now in was_right) / max(1, len(was_right))
        scores |= {f"{world}: {one}": 100 * kinds.count(one) / len(kinds) for one in KINDS}
        scores |= {f"{world}: wrong name": misnamed, f"{world}: lost": 100 * lost}
    return {**(result.results or {}), "scores": scores, "floors": {}, "intervals": {}}


def main(
    recipes: Recipes,
    to: To,
    seeds: Seeds = "0",
    overrides: Set = None,
    vary: Vary = None,
    out: Out = Path("runs"),
) -> None:
    """Train what is not trained yet, and sort its failures. Cells that the file holds are kept as they are."""
    grid.collect(grid.asked(recipes, overrides or (), vary or (), seeds), to, lambda recipe: judge(recipe, out))


if __name__ == "__main__":
    typer.run(main)
