"""What a method says of a whole data set: the one loop under evaluation, pseudo supervision and early stopping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import ten_crop
from tqdm.auto import tqdm

from wsol_lib import distributed
from wsol_lib.data.dataset import WsolDataset, collate
from wsol_lib.training import device_of, to_device
from wsol_lib.types import Batch, Localization, Localizer


def localize(
    localizer: Localizer, dataset: WsolDataset, *, batch_size: int = 64, workers: int = 0, progress: bool = True
) -> Localization:
    """What a method says of every picture of a data set, in its order, on the CPU; the same on every rank.

    Labels are given to methods that use them: so a training set gets its pseudo supervision.
    """
    parts: list[tuple[Tensor, Localization]] = []
    for batch, found in localized(localizer, dataset, batch_size, workers, progress):
        parts.append((batch["index"], found))
    return _joined([part for rank_parts in distributed.gather_objects(parts) for part in rank_parts])


@torch.no_grad()
def localized(
    localizer: Localizer, dataset: WsolDataset, batch_size: int, workers: int, progress: bool
) -> Iterator[tuple[Batch, Localization]]:
    """This rank's share of the pictures, batch by batch, and what the method says of them, on the CPU.

    The method sees them in eval mode, without gradients; labels are given to methods that use them.
    """
    mine = list(range(distributed.rank(), len(dataset), distributed.world()))
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    device, mode = device_of(localizer), localizer.training
    localizer.eval()
    hidden = None if progress and distributed.rank() == 0 else True
    for batch in tqdm(loader, f"{dataset.name} {dataset.split}", leave=False, disable=hidden):
        on_device = to_device({"image": batch["image"], "label": batch["label"]}, device)
        labels = on_device["label"] if localizer.uses_labels else None
        yield batch, localizer.localize(on_device["image"], labels).cpu()
    localizer.train(mode)


@torch.no_grad()
def ten_crop_probabilities(localizer: Localizer, images: Tensor, size: int) -> Tensor:
    """Class probabilities Float[B,K], the mean over a picture's four corners and its centre, each mirrored too.

    Published Top-1 Loc often takes the class from here, from pictures of 256 pixels and crops of 224, and the map from
    the centre alone.

    Args:
        localizer: in eval mode, and one that gives logits.
        images: Float[B,3,H,W] in [0,1].
        size: side of the square crops in pixels, at most H and W.
    """
    crops = torch.stack(ten_crop(images, [size, size])).flatten(0, 1)  # [10B,3,size,size]
    return localizer.localize(crops).logits.softmax(1).unflatten(0, (10, -1)).mean(0)  # type: ignore[union-attr]


def _joined(parts: Sequence[tuple[Tensor, Localization]]) -> Localization:
    order = torch.cat([index for index, _ in parts]).argsort().tolist()

    def tensors(name: str) -> Tensor | None:
        values = [getattr(found, name) for _, found in parts]
        return None if values[0] is None else torch.cat(values)[order]

    def lists(name: str) -> list[Tensor] | None:
        values = [getattr(found, name) for _, found in parts]
        flat = [] if values[0] is None else [item for value in values for item in value]
        return [flat[i] for i in order] if flat else None

    return Localization(tensors("logits"), tensors("maps"), lists("boxes"), lists("scores"))
