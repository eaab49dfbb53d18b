"""What a training step of TeD-Loc holds in memory: `python benchmarks/ted_loc.py`.

The cross-entropy over K classes is asked at sampled places only. Beside the library's step stands a plain one, written
here as the equation reads: the logits of all places, a tensor [B,S,S,K], then the mean over the foreground. Loss and
gradients must agree before anything is measured.

Three tables, each with all else fixed: K from 10 to 1000; the side S of the grid from 14 to 112; the seeds a picture
from 1 to 256. The encoder gives random tokens, so that what is counted is the method's: the whole step, most of which
is the decoder's and z itself, and the losses alone with the gradients of z and g. The last two columns are ratios: the
memory of the losses, and the time of the step. Peaks are of tensors, as torch counts its allocations; times are medians
of interleaved repeats in processor time, on one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
import torch.nn.functional as F
from timing import Run, medians, peak, training_step
from torch import Tensor, nn

from wsol_lib import setup
from wsol_lib.methods.ted_loc import TeDLoc, expected_embedding, patch_loss
from wsol_lib.text import orthogonal_anchors
from wsol_lib.types import Batch

TOKENS, CHANNELS, EMBEDDING = 14, 192, 512


class Case(NamedTuple):
    """What is varied."""

    classes: int
    upscale: int
    seeds: int


class Tokens(nn.Module):
    """In place of an encoder: the same random tokens for every batch of one size."""

    channels = {"last": CHANNELS}  # noqa: RUF012

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(1)
        return {"last": torch.randn(len(images), CHANNELS, TOKENS, TOKENS)}


class Whole(TeDLoc):
    """The same losses with a logit for every class at every place."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z, g = self.decode(batch["image"])
        seeds = self.draw(batch, (g.shape[1], g.shape[2])).flatten(1)  # [B,P]
        z, g, label = z.flatten(2).transpose(1, 2), g.flatten(1), batch["label"]
        logits = z @ self.anchors.T  # [B,P,K]
        each = F.cross_entropy(logits.transpose(1, 2), label[:, None].expand(seeds.shape), reduction="none")  # [B,P]
        pooled = expected_embedding(z, g) @ self.anchors.T  # [B,K]
        return {
            "distillation": each[seeds == 1].mean(),
            "patches": patch_loss(g, seeds),
            "pooled": F.cross_entropy(pooled, label),
        }


def method_and_batch(kind: type[TeDLoc], case: Case, batch_size: int) -> tuple[TeDLoc, Batch]:
    torch.manual_seed(0)
    anchors = orthogonal_anchors(torch.randn(case.classes, EMBEDDING))
    method = kind(Tokens(), anchors, upscale=case.upscale, width=64, seeds=case.seeds)  # type: ignore[arg-type]
    batch: Batch = {
        "image": torch.zeros(batch_size, 3, 8, 8),
        "label": torch.arange(batch_size) % case.classes,
        "index": torch.arange(batch_size),
        "pseudo_maps": torch.rand(batch_size, 224, 224),
    }
    return method, batch


def check(batch_size: int) -> None:
    """Refuse to measure two steps that do not compute the same."""
    found = []
    for kind in (TeDLoc, Whole):
        method, batch = method_and_batch(kind, Case(50, 2, 8), batch_size)
        torch.manual_seed(2)
        losses = method.losses(batch)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        found.append([*losses.values(), *(p.grad for p in method.parameters())])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def losses_alone(method: TeDLoc, batch: Batch) -> Run:
    """Losses and gradients for z and g that are there already."""
    z, g = (part.detach().requires_grad_() for part in method.decode(batch["image"]))
    method.decode = lambda _: (z, g)  # type: ignore[method-assign]

    def run() -> None:
        z.grad = g.grad = None
        sum(method.losses(batch).values()).backward()  # type: ignore[union-attr]

    return run


def row(case: Case, options: argparse.Namespace) -> str:
    made = [method_and_batch(kind, case, options.batch) for kind in (TeDLoc, Whole)]
    steps = [training_step(*pair) for pair in made]
    for run in steps:
        run()  # the optimiser's state is made here, once
    whole = [peak(run) for run in steps]
    fast, slow = medians(steps, options.repeats, time.process_time)
    alone = [peak(losses_alone(*pair)) for pair in made]
    grid = f"{TOKENS * case.upscale} x {TOKENS * case.upscale}"
    numbers = f"{whole[0]:8.0f} {whole[1]:8.0f} {alone[0]:10.1f} {alone[1]:8.1f} {alone[1] / alone[0]:8.1f}"
    return f"{case.classes:6} {grid:>9} {case.seeds:6} {numbers} {slow / fast:6.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="pictures in a batch")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns")
    options = parser.parse_args()
    setup(0)
    torch.set_num_threads(1)
    check(options.batch)
    head = f"{'':24}{'whole step, MiB':>17}{'losses alone, MiB':>20}{'all : ours':>17}\n" + (
        f"{'K':>6} {'grid':>9} {'seeds':>6} {'ours':>8} {'all':>8} {'ours':>10} {'all':>8} {'memory':>8} {'time':>6}"
    )
    tables = {
        "more classes": [Case(classes, 4, 8) for classes in (10, 100, 1000)],
        "a finer grid": [Case(1000, upscale, 8) for upscale in (1, 2, 4, 8)],
        "more seeds": [Case(1000, 4, seeds) for seeds in (1, 8, 64, 256)],
    }
    for title, cases in tables.items():
        print(f"{title}\n{head}")
        for case in cases:
            print(row(case, options), flush=True)


if __name__ == "__main__":
    main()
