"""How the boxes of a method are wrong on scenes, and what occlusion, mirrors and company do to the right ones.

    python -m tools.failures scenes/cam scenes/ts-cam --to results/failures.json --seeds 0,1,2

Each world of `WORLDS` turns one knob; labels, habitats and what else the pictures hold stay. Mirrors leave the animals
and their boxes as they are. Occlusion makes the boxes smaller (they bound what is visible), company makes the animals
smaller, and a larger telling part makes them larger: read their numbers with that in mind. A threshold, where a method
has maps, is chosen on the val split by its boxes, once, and kept. Boxes are half-open and IoU plain, so "right" may
differ from GT-known, whose protocol counts pixels, in a picture of forty. For each world: the share of boxes of each
kind (`wsol_lib.failures`), the share of wrong names, and `lost`: of the pictures that were right before the knob was
turned those that no longer are. All in per cent; a picture with several animals is right if the box hits one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from wsol_lib import tune_process

tune_process()

import torch  # noqa: E402

from tools.pseudo_boxes import pictures  # noqa: E402
from wsol_lib import engine  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
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


def kinds_of(localizer: Localizer, dataset: WsolDataset, protocol: Protocol) -> tuple[list[str], float | None]:
    """The kind of each picture's surest box, and the share of wrong names, None where no class is named."""
    found = engine.localize(localizer, dataset, progress=False)
    if found.boxes is None:
        drawn = [protocol.box(score_map) for score_map in found.maps]
    else:
        drawn = [boxes[0] if len(boxes) else torch.zeros(4) for boxes in found.boxes]
    kinds = [kind(box.float(), dataset.boxes(i)) for i, box in enumerate(drawn)]
    if found.logits is None:
        return kinds, None
    return kinds, 100 * (found.logits.argmax(1) != dataset.labels).double().mean().item()


def with_threshold(protocol: Protocol, localizer: Localizer, val: WsolDataset) -> Protocol:
    """The protocol with the threshold that is best on the val split."""
    tau = engine.evaluate(localizer, val, replace(protocol, tau="best"), progress=False).compute().tau
    return replace(protocol, tau=0.5 if math.isnan(tau) else tau)  # detectors have no threshold


def judge(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Kinds of failure of a run of a recipe, world by world."""
    if recipe.data.name != "scenes":
        raise SystemExit(f"{recipe.name} is not measured on scenes, whose knobs make the worlds")
    _, protocol = engine.evaluation_data(recipe)
    if protocol.side != recipe.data.size:
        raise SystemExit(f"boxes are sorted in the frame of the pictures, {recipe.data.size} px, not {protocol.side}")
    result = engine.run(recipe, out, progress=False)
    protocol = with_threshold(protocol, result.localizer, pictures(recipe, "val"))
    scores, before = {}, []
    for world, knobs in WORLDS.items():
        kinds, misnamed = kinds_of(result.localizer, pictures(recipe, "test", **knobs), protocol)
        before = before or kinds
        was_right = [now for now, first in zip(kinds, before, strict=True) if first == "right"]
        lost = sum(now != "right" for now in was_right) / max(1, len(was_right))
        scores |= {f"{world}: {one}": 100 * kinds.count(one) / len(kinds) for one in KINDS}
        scores |= {f"{world}: wrong name": misnamed, f"{world}: lost": 100 * lost}
    scores = {name: value for name, value in scores.items() if value is not None}
    return {**(result.results or {}), "scores": scores, "floors": {}, "intervals": {}}


main = grid_command(
    judge, "Train what is not trained yet, and sort its failures. Cells that the file holds are kept as they are."
)


if __name__ == "__main__":
    typer.run(main)
