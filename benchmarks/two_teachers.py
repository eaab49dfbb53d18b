"""What a training step of KD-CI-CAM costs beside one picture by picture: `python benchmarks/two_teachers.py`.

A step is losses, gradients and the update of the pool, for both teachers and the student in turn. Beside the library
stand two plain references, written here from the text of the method:

* "one by one": every picture alone goes through network, pool, mask and losses; the losses are averaged at the end;
* "loops": the network sees whole batches; pool, combination, masks and distillation go picture by picture, and the
  context is, as printed, a map of K channels that are zero but for one, through a 1x1 convolution.

"network" is what no pool and no mask can save: the same passes of the networks, and nothing else. So the last column,
the loops without it against the library without it, is the pool, the combination, the masks and the losses alone.

Losses, gradients and pools must agree before anything is measured, so batch norms are frozen. One thread, medians of
interleaved repeats in processor time; the peak is of tensors, as torch counts its allocations.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
import torch.nn.functional as F
from timing import medians
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from wsol_lib import setup
from wsol_lib.backbones import create
from wsol_lib.methods.ci_cam import CICAM, rank_weights
from wsol_lib.methods.kd_ci_cam import CLASSIFICATION, KDCICAM, LOCALIZATION, ClassificationTeacher, LocalizationTeacher
from wsol_lib.types import Batch

CLASSES = 200
Looks = tuple[Tensor, Tensor, Tensor]  # logits of the first look, logits and class maps of the second
Step = Callable[[], None]
MIB = 2**20


def student(size: int) -> KDCICAM:
    """A student with two teachers; small networks from nothing, batch norms frozen, pools that hold something."""

    def parts() -> dict[str, object]:
        backbone = create(
            "resnet10t", weights="random", stages=["last"], output_stride=8, channels=[24, 48, 64, 96], stem_width=16
        )
        return {"backbone": backbone, "classes": CLASSES, "size": size, "non_local": ["stage4", "stage5"]}

    torch.manual_seed(0)
    teachers = ClassificationTeacher(**parts(), theta=0.4), LocalizationTeacher(**parts(), theta=0.4)  # type: ignore[arg-type]
    method = KDCICAM(**parts(), classification_teacher=teachers[0], localization_teacher=teachers[1])  # type: ignore[arg-type]
    for one in (*teachers, method):
        one.train().requires_grad_(True)
        one.pool.pool.normal_()
        nn.init.normal_(one.head.weight, std=0.3)
        for layer in one.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
    return method


def pictures(size: int, batch_size: int) -> Batch:
    """A batch of random blobs; a third of the pictures for each teacher, and for none."""
    coarse = torch.rand(batch_size, 3, 6, 6)
    image = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return {"image": image, "label": torch.arange(batch_size) * 7 % CLASSES, "view": torch.arange(batch_size) % 3}


# --- the plain references: no line of wsol_lib.methods but the layers and gamma


def look(cicam: CICAM, features: Tensor, label: Tensor | None = None, gathered: Tensor | None = None) -> Looks:
    """Both looks at the map [1,C,h,w] of one picture; where there is a label, its class map is gathered."""
    plain = cicam.head(features)
    own = int(plain.argmax())
    if gathered is not None and own == int(label):  # type: ignore[arg-type]
        cams = F.conv2d(features, cicam.head.weight[:, :, None, None])  # [1,K,h,w]
        gathered[own] += cams[0, own].detach()
    context = torch.zeros(1, cicam.classes, *features.shape[2:])
    context[0, own] = cicam.pool.pool[own]
    enhanced = features + features * cicam.pool.project(context)  # type: ignore[misc]
    return plain, cicam.head(enhanced), F.conv2d(enhanced, cicam.head.weight[:, :, None, None])


def draw(cams: Tensor, logits: Tensor) -> Tensor:
    """H [h,w] of one picture, class by class."""
    order = logits[0].argsort(descending=True, stable=True).tolist()
    weights = rank_weights(len(order), "ci_quadratic").tolist()
    heat = sum((gamma * cams[0, k] for gamma, k in zip(weights, order, strict=True)), torch.zeros(()))
    return heat - heat.min()


def cut(heat: Tensor, size: int, theta: float) -> Tensor:
    """The mask [1,1,H,W] of one picture."""
    shown = F.interpolate(heat.detach()[None, None], (size, size), mode="bilinear")
    return (shown > theta * shown.max()).float()


def refresh(cicam: CICAM, gathered: Tensor) -> None:
    """Q <- bn(Q + lambda bn(V)), class by class."""
    for k in range(len(gathered)):
        fresh = F.batch_norm(gathered[None, k : k + 1], None, None, training=True)
        mixed = cicam.pool.pool[None, k : k + 1] + cicam.pool.rate * fresh
        cicam.pool.pool[k] = F.batch_norm(mixed, None, None, training=True)[0, 0]


def plain_step(method: CICAM, batch: Batch, batched: bool) -> Tensor:
    """The loss of a step of a teacher or the student, picture by picture, and what it does to the pool."""
    inputs, size = method.network.normalize(batch["image"]), batch["image"].shape[-1]
    maps = list(method.network(inputs).split(1)) if batched else [method.network(x[None]) for x in inputs]
    gathered, looks, heats = torch.zeros_like(method.pool.pool), [], []
    for features, label in zip(maps, batch["label"], strict=True):
        looks.append(look(method, features, label, gathered))
        if not isinstance(method, KDCICAM):
            heats.append(draw(looks[-1][2], looks[-1][1]))
    if isinstance(method, KDCICAM):
        losses = plain_student(method, batch, looks)
    else:
        masks = [cut(heat, size, method.theta) for heat in heats]  # type: ignore[attr-defined]
        losses = plain_teacher(method, inputs, batch["label"], looks, heats, masks, batched)
    refresh(method, gathered)
    return torch.stack(losses).sum() / len(inputs)


def through(method: CICAM, inputs: Tensor, masks: list[Tensor], batched: bool) -> list[Tensor]:
    """Logits [1,K] of each picture through its mask, past the pool."""
    if batched:
        return list(method.head(method.network(inputs * torch.cat(masks))).split(1))
    return [method.head(method.network(x[None] * mask)) for x, mask in zip(inputs, masks, strict=True)]


def plain_teacher(
    method: CICAM,
    inputs: Tensor,
    labels: Tensor,
    looks: list[Looks],
    heats: list[Tensor],
    masks: list[Tensor],
    batched: bool,
) -> list[Tensor]:
    """The losses of a teacher, one a picture."""
    fore = through(method, inputs, masks, batched)
    if isinstance(method, LocalizationTeacher):
        back = through(method, inputs, [1 - mask for mask in masks], batched)
    losses = []
    for i, (plain, logits, _) in enumerate(looks):
        label = labels[i : i + 1]
        loss = F.cross_entropy(plain, label) + F.cross_entropy(logits, label)
        if isinstance(method, LocalizationTeacher):
            more = fore[i] - back[i]
            loss = loss + method.difference * (
                F.cross_entropy(more, label) + F.cross_entropy((more + logits) / 2, label)
            )
            loss = loss + method.area * heats[i].mean()
        elif isinstance(method, ClassificationTeacher):
            loss = loss + method.foreground * F.cross_entropy(fore[i], label) + method.area * heats[i].mean()
        losses.append(loss)
    return losses


def plain_student(method: KDCICAM, batch: Batch, looks: list[Looks]) -> list[Tensor]:
    """The losses of the student, one a picture: cross-entropy, and the distillation of the teacher it drew."""
    taught = {CLASSIFICATION: method.classification_teacher, LOCALIZATION: method.localization_teacher}
    counts = {view: int((batch["view"] == view).sum()) for view in taught}
    total, losses = len(looks), []
    for i, (_, logits, cams) in enumerate(looks):
        view, label = int(batch["view"][i]), batch["label"][i : i + 1]
        loss = (1 - method.alpha) * F.cross_entropy(logits, label)
        if view in taught:
            teacher = taught[view].module  # type: ignore[union-attr]
            with torch.no_grad():
                features = teacher.network(teacher.network.normalize(batch["image"][i : i + 1]))
                _, wanted, drawn = look(teacher, features)
            if view == CLASSIFICATION:
                t = method.logit_temperature
                apart = t**2 * F.kl_div((logits / t).log_softmax(1), (wanted / t).softmax(1), reduction="sum")
            else:
                t = method.map_temperature
                apart = F.mse_loss((cams / t).sigmoid(), (drawn / t).sigmoid())
            loss = loss + method.alpha * apart * total / counts[view]
        losses.append(loss)
    return losses


# --- measuring


def library_step(method: CICAM, batch: Batch) -> Tensor:
    """The loss of a step of the library, and what it does to the pool."""
    loss = torch.stack(list(method.losses(batch).values())).sum()
    method.after_step()
    return loss


def bare_step(method: CICAM, batch: Batch) -> Tensor:
    """The passes of the networks that a step needs, and something to send a gradient back from."""
    inputs = method.network.normalize(batch["image"])
    passes = {ClassificationTeacher: 2, LocalizationTeacher: 3}.get(type(method), 1)
    if isinstance(method, KDCICAM):
        for view, teacher in (
            (CLASSIFICATION, method.classification_teacher),
            (LOCALIZATION, method.localization_teacher),
        ):
            with torch.no_grad():
                teacher.module.network(inputs[batch["view"] == view])  # type: ignore[union-attr]
    return torch.stack([method.head(method.network(inputs)).square().mean() for _ in range(passes)]).sum()


VARIANTS: dict[str, Callable[[CICAM, Batch], Tensor]] = {
    "library": library_step,
    "network": bare_step,
    "loops": lambda method, batch: plain_step(method, batch, batched=True),
    "one by one": lambda method, batch: plain_step(method, batch, batched=False),
}


def step(method: CICAM, batch: Batch, variant: str) -> Step:
    """Losses, gradients and the pool's update; the pool is put back first, so that every step is the same."""
    start = method.pool.pool.clone()

    def run() -> None:
        method.pool.pool.copy_(start)
        VARIANTS[variant](method, batch).backward()
        method.zero_grad(set_to_none=True)

    return run


def check(name: str, method: CICAM, batch: Batch) -> None:
    """The references give the library's loss, gradient and pool."""
    found = {}
    for variant in ("library", "loops", "one by one"):
        start = method.pool.pool.clone()
        loss = VARIANTS[variant](method, batch)
        loss.backward()
        found[variant] = (loss.detach(), method.head.weight.grad.clone(), method.pool.pool.clone())  # type: ignore[union-attr]
        method.zero_grad(set_to_none=True)
        method.pool.pool.copy_(start)
    for variant in ("loops", "one by one"):
        for one, other in zip(found["library"], found[variant], strict=True):
            apart = float((one - other).norm() / one.norm())
            if not apart < 1e-3:
                raise SystemExit(f"{name}: the step {variant!r} differs from the library's by {apart:.2g}")


def peak(run: Step) -> float:
    """MiB of tensors that a step holds at most, above those it began with, as torch counts every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    moves = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    moves.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in moves)) / MIB


def compare(size: int, batch_size: int, repeats: int) -> None:
    """Print the steps of both teachers, of the student, and of all three together."""
    method, batch = student(size), pictures(size, batch_size)
    kinds: dict[str, CICAM] = {
        "classification teacher": method.classification_teacher.module,  # type: ignore[union-attr]
        "localization teacher": method.localization_teacher.module,  # type: ignore[union-attr]
        "student": method,
    }
    print(f"\n{batch_size} pictures of {size} px, {CLASSES} classes, maps of {tuple(method.pool.pool.shape[1:])}")
    print(f"{'':24}{'library, s':>11}{'network':>9}{'loops':>8}{'one by one':>12}{'without network':>17}", end="")
    print("   peak MiB: library, loops, one by one")
    rows = []
    for name, one in kinds.items():
        check(name, one, batch)
        runs = [step(one, batch, variant) for variant in VARIANTS]
        memory = [peak(run) for run, variant in zip(runs, VARIANTS, strict=True) if variant != "network"]
        rows.append((medians(runs, repeats, time.process_time), memory))
        show(name, *rows[-1])
    times, peaks = zip(*rows, strict=True)
    show("all three", [sum(column) for column in zip(*times, strict=True)], [max(c) for c in zip(*peaks, strict=True)])


def show(name: str, times: list[float], memory: list[float]) -> None:
    """One row: seconds of the library, the ratio of each variant to it, and the peaks."""
    library, network, loops, single = times
    ratios = "".join(f"{t / library:{width}.2f}x" for t, width in ((network, 8), (loops, 7), (single, 11)))
    print(
        f"{name:24}{library:11.2f}{ratios}{(loops - network) / (library - network):16.1f}x   "
        + "  ".join(f"{m:8.0f}" for m in memory),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    setup(0, threads=1)
    for size in (64, 112):
        compare(size, options.batch, options.repeats)


if __name__ == "__main__":
    main()
