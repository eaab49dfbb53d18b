"""How well maps agree with masks, pixel by pixel: counts that add up over pictures, and the scores read from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]
INTERVAL = 0.001  # the step between thresholds of Choe et al.


@dataclass(frozen=True)
class PixelCounts:
    """How many object pixels and other pixels have a score between one threshold and the next.

    Counts of parts of a data set add up to those of the whole (`+`), so that scores stream and merge without a loss.

    Attributes:
        inside, outside: Int[T] each, lowest threshold first.
    """

    inside: Counts
    outside: Counts

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.inside + other.inside, self.outside + other.outside)

    def _above(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Object and other pixels with scores from each threshold up: Float[T] each, highest threshold first."""
        return np.cumsum(self.inside[::-1]).astype(float), np.cumsum(self.outside[::-1]).astype(float)

    def average_precision(self) -> float:
        """PxAP in per cent, see `pixel_average_precision`."""
        inside, outside = self._above()
        if inside[-1] == 0:
            return math.nan
        precision = inside / np.maximum(inside + outside, 1)
        return 100 * float((precision * np.diff(inside / inside[-1], prepend=0)).sum())

    def peak_iou(self) -> float:
        """pIoU in per cent, see `peak_iou`."""
        inside, outside = self._above()
        return 100 * float((inside / (inside[-1] + outside)).max()) if inside[-1] else math.nan


def count_pixels(
    scores: NDArray[np.floating[Any]], inside: NDArray[Any], outside: NDArray[Any], interval: float = INTERVAL
) -> PixelCounts:
    """Count pixels by score.

    Args:
        scores: Float of any shape, in [0,1].
        inside, outside: of the same shape, how often each pixel counts as object and as no object: booleans, or the
            sums of the masks of many pictures that share one map.
        interval: step between thresholds.
    """
    thresholds = np.append(np.arange(0, 1, interval), 1.0)
    levels = np.searchsorted(thresholds, scores.ravel(), side="right") - 1
    counts = (np.bincount(levels, weights.ravel(), len(thresholds)) for weights in (inside, outside))
    return PixelCounts(*(each.astype(np.int64) for each in counts))


def inside_outside(masks: Tensor, ignore: Tensor | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pixels of masks (above 0) count as object and which as no object; those of `ignore` count as neither."""
    truth = masks.cpu().numpy() > 0
    seen = True if ignore is None else ~(ignore.cpu().numpy() > 0)
    return truth & seen, ~truth & seen


def _counts(maps: Tensor, masks: Tensor, ignore: Tensor | None, interval: float) -> PixelCounts:
    if maps.shape != masks.shape or (ignore is not None and ignore.shape != maps.shape):
        raise ValueError(
            f"maps, masks and ignore masks have one shape; these are {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    scores = maps.detach().cpu().double().numpy()
    if not (scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1):
        raise ValueError("scores for pixels lie in [0,1]: normalise the maps first (wsol_lib.maps.normalize)")
    return count_pixels(scores, *inside_outside(masks, ignore), interval)


def pixel_average_precision(
    maps: Tensor, masks: Tensor, ignore: Tensor | None = None, interval: float = INTERVAL
) -> float:
    """PxAP, the area under the pixel precision-recall curve of all maps together, in per cent (Choe et al., CVPR 2020).

    Sum over falling thresholds of precision times the rise of recall, without interpolation.

    Args:
        maps: Float[B,h,w], scores in [0,1].
        masks: Bool[B,h,w], the object.
        ignore: Bool[B,h,w], pixels left out.
        interval: step between thresholds.

    Returns:
        PxAP, NaN if there is no object pixel.
    """
    return _counts(maps, masks, ignore, interval).average_precision()


def peak_iou(maps: Tensor, masks: Tensor, ignore: Tensor | None = None, interval: float = INTERVAL) -> float:
    """pIoU, the best pixel IoU of all maps together over the thresholds, in per cent; arguments as for PxAP."""
    return _counts(maps, masks, ignore, interval).peak_iou()


def pointing_game(maps: Tensor, masks: Tensor) -> float:
    """How often the highest pixel of a map lies on the object, in per cent (Zhang et al., IJCV 2018).

    Of tied pixels the part that lies on the object counts, so a constant map scores the object's area. The authors
    also forgive a miss by 15 pixels; here none is forgiven.

    Args:
        maps: Float[B,h,w], in any range.
        masks: Bool[B,h,w], the object.

    Raises:
        ValueError: the shapes differ, there is no map, or a map is not finite.
    """
    if maps.shape != masks.shape or not len(maps):
        raise ValueError(
            f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} must have one shape and hold a picture"
        )
    if not maps.isfinite().all():
        raise ValueError("a map is not finite, so it has no highest pixel")
    flat = maps.flatten(1)  # [B,hw]
    highest = flat == flat.amax(1, keepdim=True)
    on_object = (highest & masks.flatten(1).bool()).sum(1) / highest.sum(1)  # [B]
    return 100 * on_object.double().mean().item()
