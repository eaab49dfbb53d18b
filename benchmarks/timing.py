"""What the benchmarks share: timing several things turn by turn, and a training step to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from wsol_lib.types import Batch, Localizer

Run = Callable[[], object]


def medians(runs: Sequence[Run], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each run; turn by turn, so that what else the machine does falls on all. One turn warms up."""

    def seconds(run: Run) -> float:
        start = clock()
        run()
        return clock() - start

    times = [[seconds(run) for run in runs] for _ in range(repeats + 1)][1:]
    return [median(column) for column in zip(*times, strict=True)]


def training_step(localizer: Localizer, batch: Batch) -> Run:
    """Losses, gradients and a step of SGD."""
    learned = [p for p in localizer.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-4, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(localizer.losses(batch).values()).backward()
        optimizer.step()

    return run
