"""What the benchmarks share: timing several things turn by turn, and a training step to time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from wsol_lib.training import attention_kernel, autocast
from wsol_lib.types import Batch, Localizer

Run = Callable[[], object]
MIB = 2**20
CPU = torch.device("cpu")


def medians(runs: Sequence[Run], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each run; turn by turn, so that what else the machine does falls on all. One turn warms up."""

    def seconds(run: Run) -> float:
        start = clock()
        run()
        return clock() - start

    times = [[seconds(run) for run in runs] for _ in range(repeats + 1)][1:]
    return [median(column) for column in zip(*times, strict=True)]


def training_step(localizer: Localizer, batch: Batch, precision: str = "fp32", fused: bool = True) -> Run:
    """Losses, gradients and a step of SGD, on the CPU.

    Args:
        precision: of `training.autocast`.
        fused: torch chooses the kernel of the attention; else `training.attention_kernel` does, as in `engine.fit`.
    """
    learned = [p for p in localizer.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-4, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with nullcontext() if fused else attention_kernel(CPU, precision):
            with autocast(CPU, precision):
                loss = sum(localizer.losses(batch).values())
            loss.backward()
        optimizer.step()

    return run


def peak(run: Run) -> float:
    """MiB of tensors that a run holds at most, above those it began with, as torch counts every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    moves = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    moves.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in moves)) / MIB
