"""A few functions with one meaning for one process or many; in one process they need no process group."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def active() -> bool:
    """Whether this process is one of several that talk to each other. The same on every rank."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0; 0 in a lone process. Differs on every rank."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """How many processes train together; 1 in a lone process. The same on every rank."""
    return dist.get_world_size() if active() else 1


@contextmanager
def processes(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did, and leave them at the end.

    NCCL carries CUDA tensors, gloo all others. Differs on every rank: each gets a device of its own.

    Args:
        device: "cpu", "cuda", ...; None takes CUDA where there is one.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "LOCAL_RANK" not in os.environ or active():
        yield torch.device(chosen)
        return
    if chosen == "cuda":
        chosen = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.startswith("cuda") else "gloo")
    try:
        yield torch.device(chosen)
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if active():
        dist.barrier()


def share_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0: running statistics, which each rank keeps of its own part of a batch."""
    if active():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


class _Sum(torch.autograd.Function):
    """The sum over ranks; the gradient is the sum of the ranks' gradients, for every rank's loss leans on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def global_sum(x: Tensor) -> Tensor:
    """The element-wise sum of `x` over all ranks; the same on every rank, and it differentiates.

    Its gradient is scaled so that the mean over ranks which `DistributedDataParallel` takes of the parameters'
    gradients is the gradient that one process would have with all the data. Every rank must call it, in the same
    order, with the same shape.

    Args:
        x: Float of any shape.
    """
    if not active():
        return x
    if torch.is_grad_enabled() and not x.requires_grad and x.is_floating_point():
        x = x.detach().requires_grad_()  # a rank whose part is empty must still take its turn in the backward pass
    return _Sum.apply(x)


def global_mean(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean of all elements of `x` on all ranks: a scalar, the same on every rank, and it differentiates.

    The parts of the ranks may differ in size, and may be empty; where all are empty, or all weights are 0, the mean
    is 0 with gradient 0. With gradient accumulation it is the mean over one micro-batch of all ranks.

    Args:
        x: Float of any shape, this rank's part.
        weight: Float of the same shape, not negative; None weighs all alike.
    """
    weight = torch.ones_like(x) if weight is None else weight.to(x)
    count = global_sum(weight.sum().detach()).detach()
    return global_sum((x * weight).sum()) / torch.where(count > 0, count, torch.ones_like(count))


def gather_objects(item: Any) -> list[Any]:
    """The `item` of every rank, in the order of ranks; the same list on every rank. Objects travel by pickle."""
    if not active():
        return [item]
    items: list[Any] = [None] * world()
    dist.all_gather_object(items, item)
    return items


def key(*numbers: int | str) -> int:
    """A seed in [0, 2^63) that depends on all of `numbers` and on nothing else: not on rank, worker or machine."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(*numbers: int | str) -> None:
    """Seed Python, numpy and torch with `key(*numbers)`; give the rank as a number to make ranks differ."""
    seed = key(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Put the random states of Python, numpy and torch back at the end, as they were. Concerns this rank alone."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
