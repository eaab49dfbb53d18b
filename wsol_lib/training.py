"""The training loop that all methods share: one process or many, stopped and resumed without a trace."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from wsol_lib import distributed
from wsol_lib.checkpoint import restore, save
from wsol_lib.data.dataset import collate
from wsol_lib.recipe import Optimizer as OptimizerPart
from wsol_lib.recipe import Recipe, Training
from wsol_lib.types import Batch, CheckpointError, Localizer, RecipeError, WsolError

CHECKPOINT = "checkpoint.safetensors"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What may differ between a run and its resumption: none of it changes a loss.
FREE_TO_CHANGE = {"workers", "checkpoint_steps", "name"}


class TrainingFailed(WsolError):
    """Training cannot go on; the text names the loss and the step."""


@dataclass
class History:
    """What happened in training; the same on every rank.

    Attributes:
        steps: one dictionary an optimiser step: `epoch`, `lr` of the first group, every named loss, and `total`.
        epochs: one dictionary an epoch: `epoch`, mean losses, `seconds`; callbacks may add to the last one.
        kept_epoch: the epoch, from 0, whose weights a callback put back at the end; None: those of the last one stay.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int | None = None

    def losses(self, name: str = "total") -> list[float]:
        """One loss, step by step; NaN where a step did not have it."""
        return [step.get(name, math.nan) for step in self.steps]


class Callback:
    """What `fit` asks after each epoch, on every rank; a method's early stopping, a curve for a figure.

    The method is in eval mode. What a callback keeps goes through `state` and `load`, so that a run that was stopped
    resumes exactly.
    """

    def after_epoch(self, epoch: int, localizer: Localizer, history: History) -> bool | None:
        """Called when epoch (from 0) is over and before its checkpoint; True, on any rank, ends the training."""

    def after_fit(self, localizer: Localizer, history: History) -> None:
        """Called once at the end, also of a resumed run: the place to put the best weights back."""

    def state(self) -> dict[str, Any]:
        """What to save, nested of tensors, numbers and strings; the one of rank 0 is kept."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


def fit(
    localizer: Localizer,
    data: Dataset,
    recipe: Training | Recipe,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Train `localizer` in place, on the device where it is, in this process or in all that `torchrun` started.

    The order of the pictures depends on (seed, epoch) alone, the random numbers a method draws on (seed, epoch, step,
    part, rank). So a run that was killed gives the same losses after its resumption as one that was not, and for
    frozen batch norm and without dropout any number of processes gives the same weights.

    Args:
        data: items as `WsolDataset` gives them; `set_epoch(epoch)` is called where there is one.
        recipe: a Stage, a Training, or a Recipe of one stage (whose seed then counts).
        out: folder for a checkpoint after each epoch; None keeps none.
        resume: go on from the checkpoint in `out`, if there is one.
        progress: a bar on rank 0, where a terminal shows it.

    Raises:
        RecipeError: the data lack a key that the method needs, the batch cannot be split, nothing can be trained.
        CheckpointError: `out` holds a checkpoint of another method, recipe or seed.
        TrainingFailed: a loss is not finite.
    """
    if isinstance(recipe, Recipe):
        seed, recipe = recipe.seed, _only_stage(recipe)
    check_needs(localizer, data)
    mode = localizer.training
    with distributed.kept_randomness():
        trainer = _Trainer(localizer, data, recipe, seed, None if out is None else Path(out), callbacks, progress)
        if recipe.epochs:
            trainer.train(resume)
        localizer.eval()
        for callback in callbacks:
            callback.after_fit(localizer, trainer.history)
    localizer.train(mode)
    return trainer.history


def check_needs(localizer: Localizer, data: Dataset) -> None:
    """Refuse data whose batches lack a key that the method needs.

    Raises:
        RecipeError: names the method and the key.
    """
    if not len(data):  # type: ignore[arg-type]
        raise RecipeError("the training data are empty")
    batch = collate([data[0]])
    for key in ("image", "label", "index", *localizer.needs):
        if key not in batch:
            raise RecipeError(
                f"the method {type(localizer).__name__} needs {key!r} in the batch, which holds "
                f"{', '.join(sorted(batch))}; add a view that gives it (recipe key views, wsol_lib.data.views)"
            )


def make_optimizer(localizer: Localizer, recipe: Training) -> Optimizer:
    """The optimiser of a recipe over the parameter groups of a method.

    A group may set any option of the optimiser; without `lr` it has the recipe's, and `lr_scale` multiplies it.
    """
    part = recipe.optimizer
    groups = [group for given in localizer.param_groups(recipe) if (group := _group(given, part.lr))["params"]]
    if not any(p.requires_grad for group in groups for p in group["params"]):
        raise RecipeError(f"{type(localizer).__name__} has no parameter to train; set epochs to 0")
    if part.name == "sgd":
        return SGD(groups, part.lr, momentum=part.momentum, nesterov=part.nesterov, weight_decay=part.weight_decay)
    return _adam(part)(groups, part.lr, betas=part.betas, weight_decay=part.weight_decay)


def _adam(part: OptimizerPart) -> type[Adam]:
    return AdamW if part.name == "adamw" else Adam


def _group(group: Mapping[str, Any], lr: float) -> dict[str, Any]:
    plain = {name: value for name, value in group.items() if name != "lr_scale"}
    return {**plain, "params": list(group["params"]), "lr": group.get("lr", lr) * group.get("lr_scale", 1.0)}


def make_schedule(optimizer: Optimizer, recipe: Training, steps_per_epoch: int) -> lr_scheduler.LRScheduler:
    """The learning rate's schedule, to be stepped once an optimiser step."""
    part = recipe.schedule
    warmup = round(part.warmup * steps_per_epoch)
    left = max(recipe.epochs * steps_per_epoch - warmup, 1)
    main: lr_scheduler.LRScheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if part.name == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, left)
    if part.name == "poly":
        main = lr_scheduler.PolynomialLR(optimizer, left, power=part.power)
    if warmup:
        climb = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        main = lr_scheduler.SequentialLR(optimizer, [climb, main], milestones=[warmup])
    if part.every:
        fall = lr_scheduler.StepLR(optimizer, part.every * steps_per_epoch, part.gamma)
        return lr_scheduler.ChainedScheduler([main, fall], optimizer)
    return main


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order Int[n] in which an epoch sees its pictures: a permutation drawn from (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(distributed.key(seed, "order", epoch))
    return torch.randperm(n, generator=generator)


def rank_batches(order: Tensor, batch_size: int, accumulate: int, rank: int, world: int, first: int) -> list[list[int]]:
    """The parts of each step's batch that fall to a rank: `accumulate` lists a step, beginning with step `first`."""
    whole = order[: len(order) // batch_size * batch_size]
    steps = whole.view(-1, accumulate, world, batch_size // (accumulate * world))
    return [part for step in steps[first:, :, rank].tolist() for part in step]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors, and those in its lists, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(part) for part in value]
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {key: move(value) for key, value in batch.items()}  # type: ignore[return-value]


def device_of(localizer: nn.Module) -> torch.device:
    """The device of a method's first parameter or buffer; the CPU for one with neither."""
    tensors = [*localizer.parameters(), *localizer.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A forward pass in one of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def attention_kernel(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Torch's way through attention, forward and back.

    Its fused kernel for CPUs goes back through half precision three times slower than plain products do (torch 2.14;
    `benchmarks/precision.py`).
    """
    slow = device.type == "cpu" and precision != "fp32"
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def _only_stage(recipe: Recipe) -> Training:
    if len(recipe.stages) != 1:
        raise RecipeError(f"fit trains one stage, and {recipe.name} has {len(recipe.stages)}; use run(recipe)")
    return recipe.stages[0]


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each named loss over the steps that have it."""
    names = dict.fromkeys(name for step in steps for name in step if name not in ("epoch", "lr"))
    return {name: statistics.fmean(step[name] for step in steps if name in step) for name in names}


class _Trainer:
    """The moving parts of one `fit`: what a checkpoint must hold, and nothing else that lasts."""

    def __init__(
        self,
        localizer: Localizer,
        data: Dataset,
        recipe: Training,
        seed: int,
        out: Path | None,
        callbacks: Sequence[Callback],
        progress: bool,
    ) -> None:
        self.localizer, self.data, self.recipe, self.seed, self.out = localizer, data, recipe, seed, out
        self.callbacks, self.progress, self.history = callbacks, progress, History()
        self.device, self.epoch, self.step, self.seconds, self.stopped = device_of(localizer), 0, 0, 0.0, False

    def train(self, resume: bool) -> None:
        self.steps = self._steps_per_epoch()
        self.optimizer = make_optimizer(self.localizer, self.recipe)
        self.schedule = make_schedule(self.optimizer, self.recipe, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")
        if resume and self.out is not None and (self.out / CHECKPOINT).is_file():
            self._load()
        self.model = self._wrapped()
        while self.epoch < self.recipe.epochs and not self.stopped:
            self._epoch()

    def _steps_per_epoch(self) -> int:
        recipe, n, parts = self.recipe, len(self.data), self.recipe.accumulate * distributed.world()  # type: ignore[arg-type]
        if recipe.batch_size % parts:
            raise RecipeError(
                f"batch_size {recipe.batch_size} cannot be split evenly into accumulate {recipe.accumulate} "
                f"times {distributed.world()} processes; make it a multiple of {parts}"
            )
        if n < recipe.batch_size:
            raise RecipeError(f"batch_size {recipe.batch_size} is larger than the training data ({n} pictures)")
        return n // recipe.batch_size

    def _wrapped(self) -> nn.Module:
        if not distributed.active():
            return self.localizer
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.localizer, device_ids=ids, find_unused_parameters=True)

    def _epoch(self) -> None:
        self.localizer.train()
        start = time.perf_counter() - self.seconds
        parts = iter(self._loader())
        for _ in self._bar():
            record = self._step([next(parts) for _ in range(self.recipe.accumulate)])
            self.history.steps.append(record)
            self.localizer.after_step()
            self.step += 1
            self.seconds = time.perf_counter() - start
            every = self.recipe.checkpoint_steps
            if every and self.step % every == 0 and self.step < self.steps:
                self._save()
        self._end_epoch()

    def _loader(self) -> DataLoader:
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(self.epoch)
        recipe, rank = self.recipe, distributed.rank()
        order = epoch_order(len(self.data), self.seed, self.epoch)  # type: ignore[arg-type]
        batches = rank_batches(order, recipe.batch_size, recipe.accumulate, rank, distributed.world(), self.step)
        generator = torch.Generator().manual_seed(distributed.key(self.seed, "workers", self.epoch, rank))
        return DataLoader(
            self.data,
            batch_sampler=batches,
            num_workers=recipe.workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            generator=generator,
        )

    def _bar(self) -> Iterable[int]:
        hidden = None if self.progress and distributed.rank() == 0 else True
        title = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
        return tqdm(range(self.step, self.steps), title, self.steps, False, initial=self.step, disable=hidden)

    def _step(self, parts: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step; its learning rate, and the mean losses over all its parts and ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        seen = []
        for i, part in enumerate(parts):
            distributed.seed_all(self.seed, self.epoch, self.step, i, distributed.rank())
            seen.append(self._backward(to_device(part, self.device), last=i == len(parts) - 1))
        record = {"epoch": self.epoch, "lr": self.optimizer.param_groups[0]["lr"], **self._mean_losses(seen)}
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_((p for g in self.optimizer.param_groups for p in g["params"]), self.recipe.clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else fp16 overflowed, and the step was left out
            self.schedule.step()
        return record

    def _backward(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        apart = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if apart else nullcontext(), attention_kernel(self.device, self.recipe.precision):  # type: ignore[operator]
            with autocast(self.device, self.recipe.precision):
                losses = self.model(batch)
                total = torch.stack(list(losses.values())).sum()
            self.scaler.scale(total / self.recipe.accumulate).backward()
        return {**losses, "total": total}

    def _mean_losses(self, seen: list[dict[str, Tensor]]) -> dict[str, float]:
        with torch.no_grad():
            table = torch.stack([torch.stack([loss.float() for loss in losses.values()]) for losses in seen])  # [A,L]
            means = distributed.global_sum(table.mean(0)) / distributed.world()
        record = dict(zip(seen[0], means.tolist(), strict=True))
        for name, loss in record.items():
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss {name!r} is {loss} at step {self.step} of epoch {self.epoch} (both from 0); "
                    "lower the learning rate, clip the gradient, or train in fp32"
                )
        return record

    def _end_epoch(self) -> None:
        steps = self.history.steps[-self.steps :]
        self.history.epochs.append({"epoch": self.epoch, "seconds": self.seconds, **_means(steps)})
        self.localizer.eval()
        distributed.share_buffers(self.localizer)  # else a rank would judge, and later measure, a network of its own
        distributed.seed_all(self.seed, self.epoch, "callbacks", distributed.rank())
        wishes = [callback.after_epoch(self.epoch, self.localizer, self.history) for callback in self.callbacks]
        self.stopped = any(distributed.gather_objects(any(wishes)))
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self._save()

    def _identity(self) -> str:
        recipe = self.recipe.model_dump(mode="json", exclude=FREE_TO_CHANGE)
        return json.dumps([recipe, self.seed, len(self.data)], sort_keys=True)  # type: ignore[arg-type]

    def _save(self) -> None:
        if self.out is not None and distributed.rank() == 0:
            state = {
                "identity": self._identity(),
                "place": [self.epoch, self.step, self.seconds, self.stopped],
                "history": json.dumps(asdict(self.history)),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "callbacks": [callback.state() for callback in self.callbacks],
            }
            save(self.out / CHECKPOINT, self.localizer, state)
        distributed.barrier()

    def _load(self) -> None:
        assert self.out is not None
        state = restore(self.out / CHECKPOINT, self.localizer)
        if state["identity"] != self._identity():
            raise CheckpointError(
                f"{self.out / CHECKPOINT} was made with another recipe, seed or data; give another folder"
            )
        self.epoch, self.step, self.seconds, self.stopped = state["place"]
        self.history = History(**json.loads(state["history"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        for callback, kept in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load(kept)
