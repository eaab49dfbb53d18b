"""What the spatial token costs in training: `python benchmarks/sat.py`.

A step is losses, gradients and an update by SGD, on random pictures, with random weights. Three networks take it turn
by turn:

* "no token": the same transformer and head without spatial token, map and its losses, which is TS-CAM in training;
* "SAT": the library's, whose attention is fused everywhere;
* "whole matrices": SAT as it reads in the paper, written here: every block makes its N x N attention and a row of m,
  and the last blocks scale the columns. Its losses and gradients must be the library's before anything is measured.

One thread, medians of interleaved repeats in processor time; the peak is of tensors, as torch counts its allocations.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
from timing import medians, peak, training_step
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from wsol_lib import setup
from wsol_lib.backbones import create
from wsol_lib.methods.sat import SAT
from wsol_lib.methods.ts_cam import TSCAM
from wsol_lib.recipe import load_recipe
from wsol_lib.types import Batch

CLASSES = 200
DEIT_S = "cub/sat-deit_small-released"
CASES = (("scenes/sat", 64, 16.0), (DEIT_S, 224, 1.0), (DEIT_S, 448, 0.25))  # recipe, side, part of --batch


class WholeMatrices(nn.Module):
    """Attention with its matrix; `scaled` blocks multiply its columns by m, the others make m for nothing."""

    def __init__(self, attention: Any, scaled: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.scaled = attention.num_heads, attention.scale, scaled
        self.qkv, self.proj = attention.qkv, attention.proj
        self.foreground = nn.Sigmoid()

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-2, -1)) * self.scale  # [B,H,N,N]
        m = self.foreground(logits[:, :, -1].mean(1))  # [B,N]
        weights = logits.softmax(-1)
        if self.scaled:
            weights = weights * m[:, None, None]
        return self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, width))


def plain(method: SAT) -> SAT:
    """A copy of the method that makes all its matrices."""
    twin = copy.deepcopy(method)
    for block in twin.network.blocks:
        block.attn = WholeMatrices(block.attn, not isinstance(block.attn, Attention))
    return twin


def check(method: SAT, twin: SAT, batch: Batch) -> None:
    """Both give the same losses and gradients."""
    found = []
    for one in (method, twin):
        losses = torch.stack(list(one.eval().losses(batch).values()))
        gradients = torch.autograd.grad(losses.sum(), [one.spatial["token"], one.head.weight])
        found.append(torch.cat([losses.detach(), *(g.flatten() for g in gradients)]))
    apart = float((found[0] - found[1]).norm() / found[0].norm())
    if not apart < 1e-4:
        raise SystemExit(f"the plain SAT differs from the library's by {apart:.2g}")


def compare(recipe: str, side: int, batch_size: int, repeats: int) -> None:
    """Print a step of all three, with the network of a recipe."""
    stage = load_recipe(recipe).stages[-1]
    network = {**(stage.backbone or {}), "weights": "random"}
    method = SAT(create(**network), CLASSES, **stage.args)
    kinds = {"no token": TSCAM(create(**network), CLASSES), "SAT": method, "whole matrices": plain(method)}
    batch: Batch = {"image": torch.rand(batch_size, 3, side, side), "label": torch.arange(batch_size) % CLASSES}
    check(method, kinds["whole matrices"], batch)  # type: ignore[arg-type]
    runs = [training_step(kind, batch) for kind in kinds.values()]
    times = medians(runs, repeats, time.process_time)
    print(
        f"\n{recipe}: batches of {batch_size} at {side} px, {len(method.network.blocks)} blocks, medians of {repeats}"
    )
    print(f"{'step':16} {'ms':>7} {'to no token':>12} {'to SAT':>8} {'peak MiB':>9}")
    for name, run, seconds in zip(kinds, runs, times, strict=True):
        ratios = f"{seconds / times[0]:12.2f} {seconds / times[1]:8.2f}"
        print(f"{name:16} {1e3 * seconds:7.0f} {ratios} {peak(run):9.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4, help="of DeiT-S at 224 px; the others follow")
    options = parser.parse_args()
    setup(0, threads=1)
    for recipe, side, part in CASES:
        compare(recipe, side, max(1, round(options.batch * part)), options.repeats)


if __name__ == "__main__":
    main()
