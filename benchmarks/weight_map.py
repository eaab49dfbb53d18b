"""What a training step of the weight map costs beside a plain classifier's: `python benchmarks/weight_map.py`.

The networks are those of the recipes, with random weights, on random pictures; one thread, medians of interleaved
repeats in one run. For two networks: a step of method I and of method II against a cross-entropy step of the classifier
alone, and method I against itself with torch's filling of new memory, which `wsol_lib.setup` switches off. Then the
score S of a mask against a plain loop over `cv2.findContours`, which must give the same numbers first.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from timing import Run, medians, training_step
from torch import Tensor

from wsol_lib import setup
from wsol_lib.backbones import Backbone, create
from wsol_lib.methods.cam import CAM
from wsol_lib.methods.weight_map import SiameseWeightMap, TripletEmbedding, WeightMap, completeness
from wsol_lib.recipe import Stage, load_recipe
from wsol_lib.types import Localizer

CLASSES = 200


def methods(cam: Stage, mask: Stage) -> dict[str, Localizer]:
    def backbone(stage: Stage) -> Backbone:
        return create(**{**(stage.backbone or {}), "weights": "random"})

    def classifier() -> CAM:
        return CAM(backbone(cam), CLASSES)

    embedding = TripletEmbedding(backbone(cam), CLASSES)
    return {
        "cross-entropy": classifier(),
        "method I": WeightMap(backbone(mask), classifier(), CLASSES),
        "method II": SiameseWeightMap(backbone(mask), embedding, classifier(), CLASSES),
    }


def filled(run: Run) -> Run:
    """The same under deterministic kernels as torch has them by default: new tensors are filled with NaN."""

    def filling() -> None:
        torch.utils.deterministic.fill_uninitialized_memory = True
        run()
        torch.utils.deterministic.fill_uninitialized_memory = False

    return filling


def compare_steps(recipe_name: str, batch_size: int, repeats: int) -> None:
    recipe = load_recipe(recipe_name)
    cam, mask = recipe.stages
    shape = (batch_size, 3, recipe.data.size, recipe.data.size)
    batch = {key: torch.rand(shape) for key in ("image", "positive", "negative")}
    batch["label"] = torch.arange(batch_size) % CLASSES
    runs = {name: training_step(localizer, batch) for name, localizer in methods(cam, mask).items()}
    *times, slow = medians([*runs.values(), filled(runs["method I"])], repeats)
    print(f"\n{recipe_name}: batches of {batch_size} at {recipe.data.size} px, medians of {repeats}")
    print(f"{'step':26} {'ms':>8} {'ratio':>6}  to")
    for name, seconds in zip(runs, times, strict=True):
        print(f"{name:26} {1e3 * seconds:8.0f} {seconds / times[0]:6.2f}  cross-entropy")
    print(f"{'method I, memory filled':26} {1e3 * slow:8.0f} {slow / times[1]:6.2f}  method I")


def contour_loop(masks: Tensor) -> list[float]:
    """S of each mask with plain OpenCV and numpy."""
    scores = []
    for mask in masks.numpy():
        shown = mask >= 0.1 * mask.max()
        contours = cv2.findContours(shown.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
        weight = np.where(shown, mask, 0)
        scores.append(float(weight[y : y + h, x : x + w].sum() / weight.sum()))
    return scores


def compare_scores(side: int, n: int, repeats: int) -> None:
    coarse = torch.randn(n, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    masks = (6 * F.interpolate(coarse, (side, side), mode="bicubic")).sigmoid()[:, 0]  # [n,side,side]: blobs
    torch.testing.assert_close(completeness(masks), torch.tensor(contour_loop(masks)))
    ours, loop = (1e3 * t / n for t in medians([lambda: completeness(masks), lambda: contour_loop(masks)], repeats))
    print(f"{f'{side} px':12} {ours:14.3f} {loop:18.3f} {ours / loop:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of Lite0 at 224 px; scenes take four times as many")
    options = parser.parse_args()
    setup(0, threads=1)
    compare_steps("scenes/weight-map", 4 * options.batch, options.repeats)
    compare_steps("tiny-imagenet/weight-map-lite0", options.batch, options.repeats)
    print(f"\n{'S of a mask':12} {'ms, wsol_lib':>14} {'ms, contour loop':>18} {'ratio':>6}")
    for side in (64, 224):
        compare_scores(side, 32, 5 * options.repeats)


if __name__ == "__main__":
    main()
