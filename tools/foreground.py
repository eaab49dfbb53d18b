"""Is the foreground probability of a detector right? For recipes of WEND with FCOS on one map.

    python -m tools.foreground scenes/wend --to results/entropy_foreground.json --seeds 0,1,2,3,4 \
        --vary stages.detector.views.DisturbedBoxes.args.noise=0,0.3,0.6

Every place of every test picture says p. By the true boxes of all objects it is foreground or not, by the rule that
training has for pseudo boxes. Runs that are finished in --out are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection.image_list import ImageList

from wsol_lib import tune_process

tune_process()

from wsol_lib import engine  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
from wsol_lib.data import collate  # noqa: E402
from wsol_lib.detectors import FCOS  # noqa: E402
from wsol_lib.methods.wend import WEND, binary_entropy  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.types import Batch  # noqa: E402

BINS = 10


def calibration_error(p: Tensor, right: Tensor) -> float:
    """Mean distance of p Float[N] from the share that is right (Bool[N]), over places in bins of p; in per cent."""
    place = (p * BINS).long().clamp(max=BINS - 1)
    apart = [(p[place == k].sum() - right[place == k].sum()).abs() for k in range(BINS)]
    return 100 * torch.stack(apart).sum().item() / len(p)


def on_objects(places: Tensor, boxes: Tensor, radius: float) -> Tensor:
    """Which places Float[P,4], squares of a stride, have their centre in a box of Float[N,4] and near its middle.

    Near is within `radius` strides along both sides. Bool[P].
    """
    centre, stride = (
        (places[:, None, :2] + places[:, None, 2:]) / 2,
        places[:, None, 2:] - places[:, None, :2],
    )  # [P,1,2]
    inside = ((centre > boxes[:, :2]) & (centre < boxes[:, 2:])).all(-1)  # [P,N]
    near = ((centre - (boxes[:, :2] + boxes[:, 2:]) / 2).abs() < radius * stride).all(-1)
    return (inside & near).any(1)


@torch.no_grad()
def foreground(model: WEND, batch: Batch) -> tuple[Tensor, Tensor]:
    """p Float[B,P] of all places of a batch that shows its boxes, and which of them are foreground, Bool[B,P]."""
    parts, maps, images = model.detector.parts, model.maps(batch["image"]), batch["image"]
    p = parts.head(maps)["cls_logits"][..., 0].sigmoid()
    places = parts.anchor_generator(ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images)), maps)
    return p, torch.stack(
        [on_objects(*one, parts.center_sampling_radius) for one in zip(places, batch["boxes"], strict=True)]
    )


def judge(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Entropy, mean p on and off objects, and calibration error of a run's detector on its test pictures."""
    result = engine.run(recipe, out, progress=False)
    model, (dataset, _) = result.localizer, engine.evaluation_data(recipe)
    if not (isinstance(model, WEND) and isinstance(model.detector, FCOS)):
        raise SystemExit(f"{recipe.name} does not end in a WEND with FCOS")
    parts = [foreground(model, batch) for batch in DataLoader(dataset, 100, collate_fn=collate)]
    p, right = (torch.cat([part[i].flatten() for part in parts]) for i in (0, 1))
    scores = {
        "entropy": binary_entropy(p).mean().item(),
        "p_on_objects": p[right].mean().item(),
        "p_elsewhere": p[~right].mean().item(),
        "calibration_error": calibration_error(p, right),
    }
    return {**(result.results or {}), "scores": scores, "floors": {}, "intervals": {}}


main = grid_command(
    judge, "Train what is not trained yet, and judge p. Cells that the file holds are kept as they are."
)


if __name__ == "__main__":
    typer.run(main)
