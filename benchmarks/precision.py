"""What half precision is worth to a transformer on a CPU: `python benchmarks/precision.py`.

A step is losses, gradients and an update by SGD, on random pictures, with random weights: in fp32, in bf16 through
torch's fused attention, and in bf16 as `engine.fit` takes it, through plain products. One thread, medians of
interleaved repeats in processor time. Where the processor has no bf16 of its own, expect it to be slower than fp32.
"""

from __future__ import annotations

import argparse
import time

import torch
from timing import medians, training_step

from wsol_lib import setup
from wsol_lib.backbones import create
from wsol_lib.methods.sat import SAT
from wsol_lib.methods.ts_cam import ClassToken
from wsol_lib.recipe import load_recipe
from wsol_lib.types import Batch, Localizer

CLASSES = 200
METHODS: dict[str, type[Localizer]] = {"scenes/sat": SAT, "pretrain/tiny-vit": ClassToken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    setup(0, threads=1)
    for name, method in METHODS.items():
        recipe = load_recipe(name)
        stage, side = recipe.stages[-1], recipe.data.size
        model = method(create(**{**(stage.backbone or {}), "weights": "random"}), CLASSES, **stage.args)
        batch: Batch = {"image": torch.rand(options.batch, 3, side, side), "label": torch.arange(options.batch)}
        kinds = {"fp32": ("fp32", True), "bf16, fused": ("bf16", True), "bf16": ("bf16", False)}
        runs = [training_step(model, batch, *kind) for kind in kinds.values()]
        times = medians(runs, options.repeats, time.process_time)
        print(f"\n{name}: batches of {options.batch} at {side} px, medians of {options.repeats}")
        for kind, seconds in zip(kinds, times, strict=True):
            print(f"{kind:12} {1e3 * seconds:6.0f} ms {seconds / times[0]:6.2f} of fp32", flush=True)


if __name__ == "__main__":
    main()
