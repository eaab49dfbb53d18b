"""The CAM family with EfficientNet-Lite0 on a whole test set, into `results/cam_family_NAME.json`.

At the pooled layer all variants need the same forward pass, so it is made once for all of them; `wsol compare
NAME/cam-lite0 --vary stages.cam.args.variant=...` gives the same scores in as many times the time.

Run: python -m tools.cam_family [tiny-imagenet] [cub] [ilsvrc]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from wsol_lib import engine, grid, maps, setup
from wsol_lib.data import load
from wsol_lib.data.dataset import WsolDataset, collate
from wsol_lib.methods.cam import CAM, GRADIENT
from wsol_lib.metrics import Evaluator
from wsol_lib.recipe import load_recipe
from wsol_lib.types import Localization

VARIANTS = ("cam", *GRADIENT, "mean-activation")


@torch.no_grad()
def family(model: CAM, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the map of every variant: at the pooled layer the gradient is the class weight over h w."""
    features = model.network(images)
    activations = features["last"]  # [B,C,h,w]
    weight: Tensor = model.head.weight  # type: ignore[assignment]
    gradients = (weight[labels] / activations[0, 0].numel())[..., None, None].expand_as(activations)
    found = {"cam": maps.cam(activations, weight, labels), "mean-activation": activations.mean(1)}
    found |= {name: function(activations, gradients) for name, function in GRADIENT.items()}
    return model.head(features), found


def measure(model: CAM, data: WsolDataset, evaluators: dict[str, Evaluator]) -> None:
    """Every picture of `data` through every evaluator."""
    for batch in tqdm(DataLoader(data, 64, collate_fn=collate), f"{data.name} {data.split}"):
        logits, found = family(model, batch["image"], batch["label"])
        for name, evaluator in evaluators.items():
            localization = Localization(logits, found[name])
            evaluator.update(
                localization, batch["boxes"], labels=batch["label"], index=batch["index"], masks=batch.get("masks")
            )


def main(names: list[str]) -> None:
    """Measure the family on each named data set and write its file."""
    setup()
    for name in names or ["ilsvrc", "cub", "tiny-imagenet"]:
        start = time.perf_counter()
        axes = {"stages.cam.args.variant": VARIANTS}
        cells = list(grid.cells([f"{name}/cam-lite0"], ["stages.cam.workers=0"], axes, [0]))
        recipe = load_recipe(f"{name}/cam-lite0")
        how = recipe.evaluate
        assert how is not None
        protocol = engine.make_protocol(how)
        learned = load(recipe.data.name, recipe.data.split, size=recipe.data.size)
        model = engine.build(recipe.stages[0], learned).eval()
        assert isinstance(model, CAM)
        data = load(recipe.data.name, how.split, view=protocol)
        evaluators = {variant: Evaluator(protocol) for variant in VARIANTS}
        measure(model, data, evaluators)
        finished = {}
        for setting, cell in cells:
            evaluator = evaluators[setting["stages.cam.args.variant"]]
            run = engine.Run(cell, Path(), evaluator=evaluator)
            results = engine.results_of(run, data, protocol, time.perf_counter() - start)
            finished[engine.digest(cell.model_dump(mode="json"))] = {"setting": setting, **results}
        grid.store(Path("results") / f"cam_family_{name}.json", finished)


if __name__ == "__main__":
    main(sys.argv[1:])
