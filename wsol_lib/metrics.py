"""How well boxes and maps localize: protocols, streaming scores, pixel scores, and the trivial floors."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from wsol_lib import _levels
from wsol_lib.boxes import MODES, Component
from wsol_lib.data.geometry import Frame
from wsol_lib.pixels import (
    PixelCounts,
    count_pixels,
    inside_outside,
    peak_iou,
    pixel_average_precision,
    pointing_game,
)
from wsol_lib.types import Localization, Scores

__all__ = [
    "FLOORS",
    "PROTOCOLS",
    "Evaluator",
    "Protocol",
    "interval",
    "peak_iou",
    "pixel_average_precision",
    "pointing_game",
    "trivial_floors",
]

Array = NDArray[Any]
Result = TypeVar("Result")
HitRule = Literal[">=", ">"]
BoxEnd = Literal["clipped", "exclusive"]
Threshold = Literal["uint8", "relative", "absolute"]
Normalization = Literal["resize-minmax", "minmax-resize", "none"]
Interpolation = Literal["bicubic", "bilinear", "none"]
Policy = Literal["best", "otsu", "cross-fit"]
CHOICES: dict[str, tuple[str, ...]] = {
    "component": get_args(Component),
    "box_end": get_args(BoxEnd),
    "hit": get_args(HitRule),
    "topk_hit": get_args(HitRule),
    "threshold": get_args(Threshold),
    "normalization": get_args(Normalization),
    "interpolation": get_args(Interpolation),
}
CV2_MODES = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
MAIN_DELTA = 0.5  # the IoU of MaxBoxAcc, GT-known and Top-k Loc
BINS = 10  # of the confidence of predicted boxes, equally wide in [0,1]


@dataclass(frozen=True)
class Protocol:
    """Everything that published evaluations do differently; the default is wsolevaluation (Choe et al., CVPR 2020).

    Args:
        resize: the whole picture is resized to this square, in pixels.
        crop: then this centred square is cut out; None for none. Maps and boxes live in what remains, the frame.
        clip: ground-truth boxes are cut at the frame, and those wholly outside it are dropped.
        inclusive_truth: published corners are pixels that belong to the box (Tiny-ImageNet, ILSVRC): x1 is moved as the
            edge x1 + 1, and is the last pixel again where the IoU is inclusive. Published code moves x1 as it is.
        truncation: ground-truth corners are cut to whole pixels, int(x), before clipping.
        component: which component of the thresholded map gives the box; see `boxes.level_boxes`.
        box_end: the predicted x1 is "exclusive" (x0 + width), or "clipped" to the last pixel, min(x0 + width, W - 1).
        inclusive_iou: widths inside the IoU are x1 - x0 + 1.
        hit: a box hits where IoU >= delta, or only where IoU > delta.
        topk_hit: another rule for Top-1 and Top-5 Loc; None for the same.
        tau: the threshold of GT-known and Top-k Loc: a number in [0,1); "best", the best of `taus` on the test images
            (an upper bound); "cross-fit", the best on the even positions measured on the odd ones and the reverse;
            "otsu", one for each map, without boxes.
        taus: thresholds that "best", "cross-fit" and MaxBoxAcc try: so many even steps from 0, or these values.
        threshold: "uint8": trunc(255 s) > int(tau max); "relative": s > tau max(s); "absolute": s > tau.
        mean_threshold: what is below tau is set to 0, and then only what lies above the mean of this map is kept.
        normalization: min-max after the resize or before it, or "none": scores are used as they are, cut to [0,1].
        interpolation: how a map is resized to the frame; "none": boxes are found on the map itself and scaled.
        original_pixels: IoU is taken in pixels of the original picture; `Evaluator.update` then needs `image_sizes`.
        max_boxes: at most so many predicted boxes count in multi-box scores; None for all.
        deltas: the IoU levels of MaxBoxAccV2.

    Raises:
        ValueError: a value makes no sense; the text says which.
    """

    resize: int = 224
    crop: int | None = None
    clip: bool = False
    truncation: bool = True
    component: Component = "contour"
    box_end: BoxEnd = "clipped"
    inclusive_iou: bool = True
    hit: HitRule = ">="
    topk_hit: HitRule | None = None
    tau: float | Policy = "best"
    taus: int | tuple[float, ...] = 1000
    threshold: Threshold = "uint8"
    mean_threshold: bool = False
    normalization: Normalization = "resize-minmax"
    interpolation: Interpolation = "bicubic"
    original_pixels: bool = False
    max_boxes: int | None = 5
    deltas: tuple[float, ...] = (0.3, 0.5, 0.7)
    inclusive_truth: bool = False

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterable[str]:
        for field in fields(self):
            value, allowed = getattr(self, field.name), CHOICES.get(field.name, ())
            if allowed and value not in allowed and not (field.name == "topk_hit" and value is None):
                yield f"{field.name} is one of {', '.join(allowed)}, not {value!r}"
        if self.resize < 1 or not 1 <= (self.crop or self.resize) <= self.resize:
            yield f"the crop of {self.crop} pixels does not fit into the picture of {self.resize}"
        if isinstance(self.tau, str):
            if self.tau not in get_args(Policy):
                yield f'tau is a number in [0,1) or one of {", ".join(get_args(Policy))}, not "{self.tau}"'
        elif not 0 <= self.tau < 1:
            yield f"a threshold tau lies in [0,1); this one is {self.tau}"
        if not self.taus or not len(self.grid) or self.grid.min() < 0 or self.grid.max() >= 1:
            yield "taus is a number of steps, or thresholds in [0,1)"
        if self.max_boxes is not None and self.max_boxes < 1:
            yield f"max_boxes counts predicted boxes, at least 1, or is None for all; it is {self.max_boxes}"
        if MAIN_DELTA not in self.deltas or min(self.deltas) <= 0:
            yield f"deltas are IoU levels above 0 with {MAIN_DELTA} among them; these are {self.deltas}"

    @property
    def side(self) -> int:
        """Width and height of the frame in pixels."""
        return self.crop or self.resize

    @property
    def grid(self) -> NDArray[np.float64]:
        """The thresholds that are tried, Float[T] in [0,1)."""
        return np.arange(0, 1, 1 / self.taus)[: self.taus] if isinstance(self.taus, int) else np.array(self.taus, float)

    def frame(self, image_size: tuple[int, int]) -> Frame:
        """How a picture of `image_size` (width, height) is resized and cropped; the same for all sizes here."""
        if self.crop is None:
            return Frame(self.resize, self.resize)
        corner = round((self.resize - self.crop) / 2)
        return Frame(self.resize, self.resize, (corner, corner, self.crop, self.crop))

    def to_frame(self, boxes: Sequence[Tensor], image_sizes: Tensor) -> list[Tensor]:
        """Ground-truth boxes as the protocol sees them.

        Args:
            boxes: for each of n pictures Float[N,4], in pixels of the original picture, corners as published.
            image_sizes: Int[n,2], (width, height) of the original pictures.

        Returns:
            For each picture Float[N',4] in pixels of the frame: moved, then truncated and clipped as the protocol says.
            With `clip`, a box wholly outside the frame is dropped, so that a list may be empty.
        """
        sizes = torch.as_tensor(image_sizes).tolist()
        return [self._moved(b, (w, h)) for b, (w, h) in zip(boxes, sizes, strict=True)]

    def _moved(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        end = torch.tensor([0.0, 0, 1, 1]).double() * self.inclusive_truth
        moved = self.frame(image_size).boxes(boxes.double().reshape(-1, 4) + end, image_size)
        moved = moved - end * self.inclusive_iou
        if self.truncation:
            moved = moved.trunc()
        if self.clip:
            last = self.side - 1
            inside = (moved[:, 2:] >= 0).all(1) & (moved[:, :2] <= last).all(1)
            moved = moved[inside].clamp(0, last)
        return moved.float()

    def normalize(self, score_map: Array) -> NDArray[np.float64]:
        """A raw map Float[h,w] as this protocol sees it: Float[side,side], or Float[h,w] for interpolation "none".

        Resized and min-max normalised in float64. A map that is constant or not finite gives zeros.
        """
        scores = np.asarray(score_map, np.float64)
        if not np.isfinite(scores).all():
            return self._resize(np.zeros(scores.shape))
        if self.normalization == "none":
            return self._resize(scores.clip(0, 1))
        if self.normalization == "minmax-resize":
            return self._resize(_min_max(scores))
        return _min_max(self._resize(scores)) if np.ptp(scores) > 0 else self._resize(np.zeros(scores.shape))

    def _resize(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.interpolation == "none":
            return scores
        resized = cv2.resize(scores, (self.side, self.side), interpolation=CV2_MODES[self.interpolation])
        return resized.astype(np.float64, copy=False)

    def box(self, score_map: Array | Tensor) -> Tensor:
        """The single box that this protocol draws from a raw map at its own tau: Float[4], in pixels of the frame.

        Args:
            score_map: Float[h,w], any range; what is constant or not finite gives [0, 0, 0, 0].

        Raises:
            ValueError: tau is chosen over many pictures ("best", "cross-fit").
        """
        if self.tau in ("best", "cross-fit"):
            raise ValueError(f'tau="{self.tau}" is chosen over many pictures: for one box, give a number or "otsu"')
        return torch.from_numpy(_boxes(self, np.asarray(score_map))[-1])

    def beats(self, ious: Array, delta: float, top_k: bool = False) -> NDArray[np.bool_]:
        """Where an IoU is a hit at `delta`; `top_k` asks for the rule of Top-1 and Top-5 Loc."""
        rule = (self.topk_hit or self.hit) if top_k else self.hit
        return ious >= delta if rule == ">=" else ious > delta


def _min_max(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = scores - scores.min()
    return raised / raised.max() if raised.max() > 0 else raised


_CROPPED = Protocol(resize=256, crop=224, clip=True, box_end="exclusive")
_REGRESSED = replace(_CROPPED, hit=">")
_KD_CI_CAM = replace(
    _CROPPED,
    resize=344,
    truncation=False,
    tau=0.14,
    component="bbox",
    threshold="relative",
    mean_threshold=True,
    normalization="minmax-resize",
    interpolation="bilinear",
)

PROTOCOLS: Mapping[str, Protocol] = {
    "wsolevaluation": Protocol(),
    "sat": replace(
        _CROPPED,
        taus=(0.30, 0.35, 0.40, 0.45),
        component="pixels",
        threshold="absolute",
        normalization="minmax-resize",
        interpolation="bilinear",
    ),
    "bas": replace(_CROPPED, truncation=False, tau=0.15, component="pixels", threshold="relative", hit=">"),
    "ts-cam": replace(_CROPPED, tau=0.10, topk_hit=">"),
    "scm": replace(_CROPPED, tau=0.12, topk_hit=">"),
    "psol": _REGRESSED,
    "c2am": _REGRESSED,
    "c2am-map": replace(
        _REGRESSED,
        resize=480,
        crop=448,
        taus=20,
        inclusive_iou=False,
        normalization="none",
        interpolation="none",
    ),
    "nl-ccam": replace(_KD_CI_CAM, resize=224, crop=None, clip=False, tau=0.12, original_pixels=True),
    "kd-ci-cam-344": _KD_CI_CAM,
    "kd-ci-cam-500": replace(_KD_CI_CAM, resize=500, crop=299, tau=0.21),
    "kd-ci-cam-288": replace(_KD_CI_CAM, resize=288, tau=0.11),
    "weight-map": replace(_CROPPED, tau=0.10),
    "wend": replace(_REGRESSED, max_boxes=5),
    "ted-loc": Protocol(resize=256),
}
"""What each paper's code does (METHODS of the book's protocol page). Fixed taus are those for birds where a paper has
one a data set: BAS and TS-CAM take .10 and .12 on ImageNet, SCM .12 on both, KD-CI-CAM one for each crop."""


@dataclass(frozen=True)
class _Overlaps:
    """Best IoU with any ground-truth box for each tried threshold: of the single box and of the best of all boxes."""

    single: NDArray[np.float64]  # [T]
    multi: NDArray[np.float64]  # [T]


class _Detected(NamedTuple):
    """What recall and calibration need of one picture's predicted boxes."""

    objects: NDArray[np.int32]  # [2], how many there are, and how many are found
    bins: NDArray[np.float32]  # [3,BINS]: number of boxes, sum of their confidence, number of right ones


def _levels_of(protocol: Protocol, scores: NDArray[np.float64]) -> tuple[NDArray[np.uint16], int, NDArray[np.int64]]:
    """A normalised map as levels for `_levels.components`: `(levels, count, the level of each column)`."""
    bytes_ = (255 * scores.clip(0, 1)).astype(np.uint8)
    otsu = cv2.threshold(bytes_, 0, 255, cv2.THRESH_OTSU)[0] if protocol.tau == "otsu" else None
    taus = protocol.grid if isinstance(protocol.tau, str) else np.append(protocol.grid, protocol.tau)
    if protocol.threshold == "uint8":
        top = int(bytes_.max())
        columns = (taus * top).astype(np.int64) if otsu is None else np.append((taus * top).astype(np.int64), int(otsu))
        return bytes_.astype(np.uint16), max(1, top), columns.clip(max=max(0, top - 1))
    cuts = taus * scores.max() if protocol.threshold == "relative" else taus
    if otsu is not None:
        cuts = np.append(cuts, np.nextafter((otsu + 1) / 255, 0))
    if protocol.mean_threshold:
        cuts = np.maximum(cuts, _means_above(scores, cuts))
    distinct, columns = np.unique(cuts, return_inverse=True)
    return np.searchsorted(distinct, scores).astype(np.uint16), len(distinct), columns


def _means_above(scores: NDArray[np.float64], cuts: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each cut the mean over all pixels of the map that is zero up to the cut."""
    ordered = np.sort(scores, axis=None)
    sums = np.append(np.cumsum(ordered[::-1])[::-1], 0.0)
    return sums[np.searchsorted(ordered, cuts, side="right")] / ordered.size


def _scale_and_limit(protocol: Protocol, shape: tuple[int, ...], image_size: Array | None) -> tuple[Array, Array]:
    """What turns a box on a map of `shape` into one of the frame or the original picture: factors, last values."""
    scale = np.tile([protocol.side / shape[1], protocol.side / shape[0]], 2)
    limit = np.full(4, protocol.side - 1.0 if protocol.box_end == "clipped" else np.inf)
    zoom = _zoom(protocol, image_size)
    return scale * zoom, limit * zoom


def _zoom(protocol: Protocol, image_size: Array | None) -> NDArray[np.float64]:
    """From pixels of the frame to those in which IoU is taken: Float[4]."""
    if not protocol.original_pixels:
        return np.ones(4)
    if image_size is None:
        raise ValueError("this protocol measures in pixels of the original picture: give update() the image_sizes")
    return np.tile(np.asarray(image_size, float) / protocol.resize, 2)


def _boxes(protocol: Protocol, raw: Array) -> NDArray[np.float64]:
    """The single box of a raw map at each threshold of the protocol, in pixels of the frame: Float[T,4]."""
    scores = protocol.normalize(raw)
    levels, count, columns = _levels_of(protocol, scores)
    largest = _levels.components(levels, count, MODES[protocol.component], False)[1]
    scale, limit = _scale_and_limit(replace(protocol, original_pixels=False), scores.shape, None)
    return np.minimum(largest[columns, :4] * scale, limit)


def _map_overlaps(protocol: Protocol, raw: Array, targets: Array, image_size: Array | None) -> _Overlaps:
    scores = protocol.normalize(raw)
    levels, count, columns = _levels_of(protocol, scores)
    nodes, largest = _levels.components(levels, count, MODES[protocol.component], True)
    scale, limit = _scale_and_limit(protocol, scores.shape, image_size)
    targets, one = targets * _zoom(protocol, image_size), float(protocol.inclusive_iou)
    single, multi = (_levels.best_ious(n, count, targets, scale, limit, one)[columns] for n in (largest, nodes))
    return _Overlaps(single, multi)


def _box_overlaps(
    protocol: Protocol, predicted: Tensor, scores: Tensor | None, targets: Array, image_size: Array | None
) -> tuple[_Overlaps, _Detected]:
    zoom = _zoom(protocol, image_size)
    limit = np.full(4, protocol.side - 1.0 if protocol.box_end == "clipped" else np.inf)
    found = np.minimum(predicted.double().numpy().reshape(-1, 4), limit)[: protocol.max_boxes] * zoom  # [N,4]
    ious = _pairwise(found[:, None], targets[None] * zoom, float(protocol.inclusive_iou))  # [N,M]
    best, reached = ious.max(1, initial=0.0), ious.max(0, initial=0.0)  # [N], [M]
    objects = np.array([len(targets), protocol.beats(reached, MAIN_DELTA).sum()], np.int32)
    confidence = np.zeros(0) if scores is None else scores.double().numpy()[: protocol.max_boxes]
    bins = _binned(confidence, protocol.beats(best, MAIN_DELTA))
    first = best if len(best) else np.zeros(1)
    return _Overlaps(first[:1], first.max(keepdims=True)), _Detected(objects, bins)


def _binned(confidence: Array, right: Array) -> NDArray[np.float32]:
    """Number of boxes, sum of confidence and number of right boxes in each bin: Float[3,BINS]; NaN if not in [0,1]."""
    if not ((confidence >= 0) & (confidence <= 1)).all():
        return np.full((3, BINS), np.nan, np.float32)
    if not len(confidence):
        return np.zeros((3, BINS), np.float32)
    place = (confidence * BINS).astype(int).clip(max=BINS - 1)
    columns = (np.ones(len(place)), confidence, right)
    return np.stack([np.bincount(place, weights, BINS) for weights in columns]).astype(np.float32)


def _pairwise(a: Array, b: Array, one: float) -> NDArray[np.float64]:
    """IoU of boxes Float[...,4] against Float[...,4], broadcast; inverted boxes are empty, 0/0 is 0."""
    inter = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + one).clip(0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2] + one).clip(0).prod(-1) for x in (a, b)]
    union = areas[0] + areas[1] - inter
    return np.divide(inter, union, out=np.zeros(np.shape(union)), where=union > 0)


def _checked_targets(boxes: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """Ground-truth boxes as arrays; an inverted or unknown one is an error that names its place in the batch."""
    targets = [torch.as_tensor(b).detach().cpu().double().numpy().reshape(-1, 4) for b in boxes]
    for i, target in enumerate(targets):
        if not np.isfinite(target).all() or (target[:, 2:] < target[:, :2]).any():
            raise ValueError(
                f"ground-truth box of picture {i} in the batch is inverted or not finite: {target.tolist()}"
            )
    return targets


def _ranks(logits: Tensor | None, labels: Tensor | None, n: int) -> NDArray[np.int32]:
    """How many classes stand before the true one, Int[n]; -1 where unknown. Of equal logits the first class leads."""
    if logits is None or labels is None:
        return np.full(n, -1, np.int32)
    if len(logits) != n or len(labels) != n:
        raise ValueError(f"{n} pictures came with {len(logits)} rows of logits and {len(labels)} labels")
    logits, labels = logits.detach().cpu(), labels.detach().cpu().long()
    logits = logits.nan_to_num(nan=-torch.inf)
    own = logits.gather(1, labels[:, None])  # [n,1]
    earlier = torch.arange(logits.shape[1]) < labels[:, None]  # [n,K]
    ranks = ((logits > own) | ((logits == own) & earlier) | torch.isneginf(own)).sum(1)
    return ranks.numpy().astype(np.int32)


class _Pixels(NamedTuple):
    """What pixel scores need of all pictures so far."""

    counts: PixelCounts
    inside: NDArray[np.int64]  # [side,side], in how many pictures each pixel of the frame is object
    outside: NDArray[np.int64]  # [side,side], and in how many it is not


def _together(one: _Pixels | None, other: _Pixels | None) -> _Pixels | None:
    if one is None or other is None:
        return one or other
    return _Pixels(one.counts + other.counts, one.inside + other.inside, one.outside + other.outside)


def _pixel_map(protocol: Protocol, raw: Array) -> NDArray[np.float64]:
    """A raw map as pixel scores take it: as for boxes, in the frame, cut to [0,1] where the resize overshoots."""
    resized = protocol if protocol.interpolation != "none" else replace(protocol, interpolation="bilinear")
    return resized.normalize(raw).clip(0, 1)


def _pixel_scores(counts: PixelCounts) -> dict[str, float]:
    return {"pxap": counts.average_precision(), "piou": counts.peak_iou()}


class Evaluator:
    """Streaming localization scores under one protocol.

    It keeps, for each picture, one bit a threshold and IoU level and one byte a threshold (about 90 MB for 50,000
    pictures), so that scores of halves, intervals and merged parts are exact. Of masks it keeps sums over all pictures.

    Args:
        protocol: how maps become boxes and boxes hits.
        threads: maps evaluated at the same time; None for as many as torch uses.

    Attributes:
        taus: Float[T], the threshold of each column of `hits`: those the protocol tries, then its own tau if that is a
            number, or NaN for Otsu's. A single NaN where boxes were predicted.
    """

    def __init__(self, protocol: Protocol, threads: int | None = None) -> None:
        self.protocol = protocol
        self.threads = threads or torch.get_num_threads()
        self.taus: NDArray[np.float64] = np.array([])
        self._parts: dict[str, list[Array]] = {}
        self._seen: set[int] = set()
        self._indexed: bool | None = None
        self._pixels: _Pixels | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts.get("rank", []))

    def update(
        self,
        prediction: Localization | Tensor,
        boxes: Sequence[Tensor],
        *,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        image_sizes: Tensor | None = None,
        masks: Tensor | None = None,
        ignore: Tensor | None = None,
    ) -> None:
        """Add a batch of B pictures.

        Args:
            prediction: a Localization, whose predicted boxes count if it has any and else its maps; or raw maps
                Float[B,h,w] of any size and range. A map that is constant or not finite gives the box [0, 0, 0, 0].
            boxes: for each picture its ground-truth boxes Float[N,4], as `protocol.to_frame` returns them. A picture
                without boxes counts as a miss.
            logits: Float[B,K] for Top-1 and Top-5; those of the Localization where it is None.
            labels: Int[B], the true classes.
            index: Int[B], positions in the data set. A position seen before, or below 0, is dropped: the padded tail
                of a distributed sampler. Give it always or never.
            image_sizes: Int[B,2], (width, height) of the original pictures; needed by `original_pixels` alone.
            masks: Bool[B,side,side], the objects in the frame, for the pixel scores of the maps.
            ignore: Bool[B,side,side], pixels that those leave out.

        Raises:
            ValueError: the parts disagree on B, a ground-truth box is inverted, or maps and boxes are mixed.
        """
        found = (prediction if isinstance(prediction, Localization) else Localization(maps=prediction)).cpu()
        n = len(found)
        if len(boxes) != n or (index is not None and len(index) != n):
            raise ValueError(f"{n} predictions came with {len(boxes)} lists of boxes and the index {index}")
        for grids in (masks, ignore):
            if grids is not None and grids.shape != (n, self.protocol.side, self.protocol.side):
                raise ValueError(f"masks lie in the frame of the protocol, not in {tuple(grids.shape)}: set its view")
        if found.maps is not None and found.maps.ndim != 3:
            raise ValueError(f"maps are Float[B,h,w]; these have the shape {tuple(found.maps.shape)}")
        targets = _checked_targets(boxes)
        keep, positions = self._new_positions(n, index)
        ranks = _ranks(found.logits if logits is None else logits, labels, n)[keep]
        sizes = None if image_sizes is None else torch.as_tensor(image_sizes).cpu().numpy()
        overlaps, detected = self._overlaps(found, targets, sizes, keep)
        if keep:
            columns = self._columns() if found.boxes is None else np.array([np.nan])
            single, multi = (np.stack([getattr(o, kind) for o in overlaps]) for kind in ("single", "multi"))
            more = {name: np.stack([getattr(d, name) for d in detected]) for name in _Detected._fields if detected}
            self._add(columns, single, multi, ranks, positions, **more)
            self._indexed = index is not None
            if found.maps is not None and masks is not None:
                self._add_pixels(found.maps[keep], masks[keep], None if ignore is None else ignore[keep])

    def _new_positions(self, n: int, index: Tensor | None) -> tuple[list[int], NDArray[np.int64]]:
        """Which pictures of the batch are new, and their positions in the data set."""
        if self._indexed not in (None, index is not None):
            raise ValueError("give update() the index of every batch or of none")
        places = range(len(self), len(self) + n) if index is None else [int(i) for i in index]
        first = {place: i for i, place in reversed(list(enumerate(places)))}
        keep = [i for i, place in enumerate(places) if place >= 0 and place not in self._seen and first[place] == i]
        return keep, np.array([places[i] for i in keep], np.int64)

    def _columns(self) -> NDArray[np.float64]:
        own = (
            {"otsu": [np.nan]}.get(self.protocol.tau, []) if isinstance(self.protocol.tau, str) else [self.protocol.tau]
        )
        return np.append(self.protocol.grid, own)

    def _overlaps(
        self, found: Localization, targets: list[Array], sizes: Array | None, keep: list[int]
    ) -> tuple[list[_Overlaps], list[_Detected]]:
        size: Callable[[int], Array | None] = lambda i: None if sizes is None else sizes[i]  # noqa: E731

        def of_map(i: int) -> _Overlaps:
            assert found.maps is not None
            return _map_overlaps(self.protocol, found.maps[i].double().numpy(), targets[i], size(i))

        def of_boxes(i: int) -> tuple[_Overlaps, _Detected]:
            assert found.boxes is not None
            confidence = None if found.scores is None else found.scores[i]
            return _box_overlaps(self.protocol, found.boxes[i], confidence, targets[i], size(i))

        if found.boxes is None:
            return self._each(of_map, keep), []
        overlaps, detected = zip(*(of_boxes(i) for i in keep), strict=True) if keep else ((), ())
        return list(overlaps), list(detected)

    def _each(self, function: Callable[[int], Result], items: Iterable[int]) -> list[Result]:
        """The function of every item, in threads."""
        if self.threads == 1:
            return [function(i) for i in items]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(function, items))

    def _add_pixels(self, maps: Tensor, masks: Tensor, ignore: Tensor | None) -> None:
        inside, outside = inside_outside(masks, ignore)  # [B,side,side] each
        scores = maps.double().numpy()

        def one(i: int) -> PixelCounts:
            return count_pixels(_pixel_map(self.protocol, scores[i]), inside[i], outside[i])

        counts = functools.reduce(operator.add, self._each(one, range(len(inside))))
        self._pixels = _together(self._pixels, _Pixels(counts, inside.sum(0), outside.sum(0)))

    def _add(
        self,
        taus: Array,
        single: Array,
        multi: Array,
        ranks: Array,
        positions: Array,
        **more: Array,
    ) -> None:
        """Keep best IoUs Float[B,T] of the single box and of all boxes, and what more there is of each picture."""
        if len(self) and not np.array_equal(taus, self.taus, equal_nan=True):
            raise ValueError("one Evaluator takes maps or predicted boxes, not both: use two")
        self.taus = taus
        bits = {
            f"{kind} {delta}": self.protocol.beats(ious, delta)
            for kind, ious in (("single", single), ("multi", multi))
            for delta in self.protocol.deltas
        }
        if self.protocol.topk_hit not in (None, self.protocol.hit):
            bits["single top-k"] = self.protocol.beats(single, MAIN_DELTA, top_k=True)
            bits["multi top-k"] = self.protocol.beats(multi, MAIN_DELTA, top_k=True)
        parts = {name: np.packbits(values, axis=1) for name, values in bits.items()}
        parts |= {"rank": ranks, "position": positions, "iou": (255 * single).astype(np.uint8), **more}
        for name, values in parts.items():
            self._parts.setdefault(name, []).append(values)
        self._seen.update(positions.tolist())

    def merge(self, other: Evaluator) -> Evaluator:
        """Add the pictures of another evaluator of the same protocol (say, of another process); returns itself.

        With an index, pictures that both have seen count once; pixel scores, which keep no pictures, refuse them.

        Raises:
            ValueError: the protocols differ, one had an index and the other not, or pixels would be counted twice.
        """
        if other.protocol != self.protocol:
            raise ValueError("only evaluators of the same protocol can be merged")
        if not len(other):
            return self
        if len(self) and self._indexed != other._indexed:
            raise ValueError("an evaluator that was given an index cannot be merged with one that was not")
        if len(self) and not np.array_equal(self.taus, other.taus, equal_nan=True):
            raise ValueError("an evaluator of maps cannot be merged with one of predicted boxes")
        positions = other._all("position") if other._indexed else np.arange(len(self), len(self) + len(other))
        new = np.array([int(p) not in self._seen for p in positions])
        if not new.all() and other._pixels is not None:
            raise ValueError("both evaluators have seen the same pictures with masks: give each its own share")
        self._pixels = _together(self._pixels, other._pixels)
        self.taus, self._indexed = other.taus, other._indexed
        for name in other._parts:
            values = positions if name == "position" else other._all(name)
            self._parts.setdefault(name, []).append(values[new])
        self._seen.update(positions.tolist())
        return self

    def _all(self, name: str) -> Array:
        self._parts[name] = [np.concatenate(self._parts[name])]
        return self._parts[name][0]

    def _bits(self, name: str) -> NDArray[np.bool_]:
        return np.unpackbits(self._all(name), axis=1, count=len(self.taus)).astype(bool)

    def hits(self, delta: float = MAIN_DELTA, multi: bool = False) -> Tensor:
        """Which pictures are hit at IoU `delta` for each of `taus`: Bool[n,T], by the single box or by any (`multi`).

        Raises:
            ValueError: `delta` is none of the protocol's.
        """
        if delta not in self.protocol.deltas:
            raise ValueError(f"this protocol keeps hits at {self.protocol.deltas}, not at {delta}")
        if not len(self):
            return torch.zeros(0, len(self.taus), dtype=torch.bool)
        return torch.from_numpy(self._bits(f"{'multi' if multi else 'single'} {delta}"))

    def _tried(self) -> int:
        """How many of the columns "best" may choose from: all but the protocol's own tau."""
        own = self.protocol.tau == "otsu" or not isinstance(self.protocol.tau, str)
        return len(self.taus) - 1 if own and len(self.taus) > 1 else len(self.taus)

    def _chosen(self) -> NDArray[np.int64] | None:
        """For each picture the column that GT-known uses; None if cross-fitting lacks one of the halves."""
        n, tried = len(self), self._tried()
        if tried < len(self.taus) or len(self.taus) == 1:
            return np.full(n, len(self.taus) - 1)
        hits = self._bits(f"single {MAIN_DELTA}")
        if self.protocol.tau == "best":
            return np.full(n, hits.mean(0).argmax())
        odd = self._all("position") % 2 == 1
        if odd.all() or not odd.any():
            return None
        return np.where(odd, hits[~odd].mean(0).argmax(), hits[odd].mean(0).argmax())

    def per_image(self, score: str = "gt_known") -> Tensor | None:
        """Which pictures count in a score, Bool[n]: `gt_known`, `top1_loc`, `gt_known_multi`, `top5_cls`, and so on.

        At the threshold that the protocol's policy chooses. None where the score is unknown.
        """
        known = {"gt_known": 0, "top1_loc": 1, "top5_loc": 5, "gt_known_multi": 0, "top5_loc_multi": 5}
        if score not in known and score not in ("top1_cls", "top5_cls"):
            raise ValueError(
                f"there is no score {score!r} for each picture; there are {', '.join(known)}, top1_cls, top5_cls"
            )
        if not len(self):
            return None
        top = int(score[3]) if score.endswith("_cls") else known[score]
        ranks = self._all("rank")
        if top and (ranks < 0).any():
            return None
        right = torch.from_numpy(ranks < top) if top else torch.ones(len(self), dtype=torch.bool)
        if score.endswith("_cls"):
            return right
        hit = self._chosen_hits("multi" if score.endswith("multi") else "single", bool(top))
        return None if hit is None else hit & right

    def _chosen_hits(self, kind: str, top_k: bool) -> Tensor | None:
        chosen = self._chosen()
        if chosen is None:
            return None
        name = f"{kind} top-k" if top_k and f"{kind} top-k" in self._parts else f"{kind} {MAIN_DELTA}"
        return torch.from_numpy(self._bits(name)[np.arange(len(self)), chosen])

    def ious(self) -> Tensor | None:
        """IoU of each picture's single box with its best ground-truth box, Float[n], rounded down to a step of 1/255.

        At the threshold that the protocol's policy chooses; None where that is unknown.
        """
        chosen = self._chosen() if len(self) else None
        if chosen is None:
            return None
        return torch.from_numpy(self._all("iou")[np.arange(len(self)), chosen] / np.float32(255))

    def interval(self, score: str = "gt_known", confidence: float = 0.95) -> tuple[float, float]:
        """The interval of a score of `per_image`, in per cent; NaN where the score is unknown."""
        hits = self.per_image(score)
        return (math.nan, math.nan) if hits is None else interval(hits, confidence)

    def compute(self) -> Scores:
        """The scores of all pictures so far, in per cent; NaN where unknown.

        `max_box_acc`: the best of `taus` at IoU .5, single box. `max_box_acc_v2`: for each IoU of `deltas` the best of
        `taus`, any box, averaged. Both choose tau on these pictures and are upper bounds (for predicted boxes there is
        nothing to choose). `gt_known` and `gt_known_multi`: IoU .5 at the one `tau` of the protocol's policy, by the
        single box or by any. `top1_loc`, `top5_loc`, `top5_loc_multi`: those hits where the class is right as well.
        `tau`: the threshold used; under "cross-fit" the mean of the two, NaN for Otsu and for predicted boxes.
        `pxap`, `piou`: pixel scores of the maps whose pictures came with a mask, see `pixel_average_precision` and
        `peak_iou`; the maps are normalised and resized as for boxes. `piou` chooses its threshold on these pictures.
        `recall`: of all objects, those that one of at most `max_boxes` predicted boxes hits at IoU .5.
        `calibration_error`: how far the scores of those boxes are from the share of right ones, as a mean over boxes in
        bins; NaN unless all scores lie in [0,1]. It compares networks whose scores mean the same.
        """
        names = ("gt_known", "top1_loc", "top5_loc", "gt_known_multi", "top5_loc_multi", "top1_cls", "top5_cls")
        each = {name: _per_cent(self.per_image(name)) for name in names}
        n, tried = len(self), self._tried()
        if not n:
            return Scores(max_box_acc=math.nan, max_box_acc_v2=math.nan, tau=math.nan, n=0, **each)
        best = [_per_cent_best(self.hits(delta, multi=True)[:, :tried]) for delta in self.protocol.deltas]
        return Scores(
            max_box_acc=_per_cent_best(self.hits(MAIN_DELTA)[:, :tried]),
            max_box_acc_v2=float(np.mean(best)),
            tau=self._tau(),
            n=n,
            **each,
            **({} if self._pixels is None else _pixel_scores(self._pixels.counts)),
            **self._detection_scores(),
        )

    def _detection_scores(self) -> dict[str, float]:
        if "objects" not in self._parts:
            return {}
        there, found = self._all("objects").sum(0)
        boxes, confidence, right = self._all("bins").sum(0, dtype=np.float64)  # [BINS] each
        return {
            "recall": 100 * found / there if there else math.nan,
            "calibration_error": 100 * abs(confidence - right).sum() / boxes.sum() if boxes.any() else math.nan,
        }

    def reliability(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Mean confidence, share of right boxes and number of boxes in each of `BINS` bins of confidence.

        Of the scores of at most the protocol's `max_boxes` boxes a picture, whatever the method means by a score. A box
        is right if it hits an object at IoU .5, also one that was hit before. Empty bins are NaN, as are all of maps,
        and all where a score lies outside [0,1].
        """
        boxes, confidence, right = (
            self._all("bins").sum(0, dtype=np.float64) if "bins" in self._parts else np.zeros((3, BINS))
        )
        with np.errstate(invalid="ignore"):
            return confidence / boxes, right / boxes, boxes

    def pixel_floors(self) -> dict[str, dict[str, float]]:
        """`pxap` and `piou` of two of the trivial floors on the masks seen so far; empty where there were none.

        The "full box" is a map of ones. The same map for all pictures needs but the sum of their masks.
        """
        if self._pixels is None:
            return {}
        _, inside, outside = self._pixels
        full, gaussian = np.ones(inside.shape), _pixel_map(self.protocol, _gaussian(self.protocol.side))
        maps = {"full box": full, "centred Gaussian": gaussian}
        return {name: _pixel_scores(count_pixels(scores, inside, outside)) for name, scores in maps.items()}

    def _tau(self) -> float:
        chosen = self._chosen()
        return math.nan if chosen is None else float(self.taus[np.unique(chosen)].mean())


def _per_cent(hits: Tensor | None) -> float:
    return math.nan if hits is None else 100 * hits.double().mean().item()


def _per_cent_best(hits: Tensor) -> float:
    return 100 * hits.double().mean(0).max().item()


def interval(hits: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for the share of hits Bool[n], in per cent; NaN for n = 0.

    The pictures are taken as independent draws; the choice of a threshold on them is not accounted for.
    """
    n = len(hits)
    if not n:
        return math.nan, math.nan
    z, share = float(norm.ppf((1 + confidence) / 2)), hits.double().mean().item()
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


FLOORS = ("full box", "best centred box", "centred Gaussian")
RELATIVE_SIZES = np.arange(1, 101) / 100


def trivial_floors(protocol: Protocol, boxes: Sequence[Tensor], image_sizes: Tensor) -> dict[str, Scores]:
    """What localization without looking scores: the numbers that any method must be read against.

    Args:
        protocol: decides frame, thresholds, IoU and hits.
        boxes: for each of n pictures Float[N,4] in pixels of the original picture, as published.
        image_sizes: Int[n,2], (width, height).

    Returns:
        "full box": all of the frame. "best centred box": a centred square of the relative size .01 to 1 (its `tau`)
        that does best on these very boxes, an upper bound. "centred Gaussian": the same map for every picture, through
        the protocol's thresholds. The size, and tau of the Gaussian, are chosen by "best" unless the protocol says
        "cross-fit": then `gt_known` is cross-fitted while `max_box_acc` remains the upper bound.
    """
    tau: Policy = "cross-fit" if protocol.tau == "cross-fit" else "best"
    chosen = replace(protocol, tau=tau)
    gaussian = _gaussian_boxes(chosen)
    candidates = {
        "full box": (np.array([np.nan]), _centred_boxes(protocol, np.ones(1))),
        "best centred box": (RELATIVE_SIZES, _centred_boxes(protocol, RELATIVE_SIZES)),
        "centred Gaussian": (chosen.grid, gaussian),
    }
    targets = _checked_targets(protocol.to_frame(boxes, image_sizes))
    sizes = torch.as_tensor(image_sizes).numpy()
    return {name: _constant_scores(chosen, *candidates[name], targets, sizes) for name in FLOORS}


def _centred_boxes(protocol: Protocol, shares: Array) -> NDArray[np.float64]:
    """Centred squares of the frame of the given relative sizes, Float[C,4], with the ends that IoU expects."""
    margin = protocol.side * (1 - shares) / 2
    last = protocol.side - margin - float(protocol.inclusive_iou)
    return np.stack([margin, margin, last, last], axis=1)


def _gaussian_boxes(protocol: Protocol) -> NDArray[np.float64]:
    """The box of a centred Gaussian map at each threshold of the protocol's grid: Float[T,4]."""
    return _boxes(protocol, _gaussian(protocol.side))


def _gaussian(side: int) -> NDArray[np.float64]:
    """A centred Gaussian whose standard deviation is a quarter of the side: Float[side,side]."""
    x = np.arange(side) - (side - 1) / 2
    line = np.exp(-((4 * x / side) ** 2) / 2)
    return np.outer(line, line)


def _constant_scores(
    protocol: Protocol, taus: Array, boxes: Array, targets: list[Array], sizes: Array, chunk: int = 2048
) -> Scores:
    """Scores of the same candidate boxes Float[T,4] on every picture."""
    evaluator = Evaluator(protocol)
    distinct, columns = np.unique(boxes, axis=0, return_inverse=True)
    for start in range(0, len(targets), chunk):
        part, size = targets[start : start + chunk], sizes[start : start + chunk]
        zoom = np.stack([_zoom(protocol, s) for s in size])  # [B,4]
        owner = np.repeat(np.arange(len(part)), [len(t) for t in part])
        ious = _pairwise(
            (distinct * zoom[owner, None]), (np.concatenate(part) * zoom[owner])[:, None], float(protocol.inclusive_iou)
        )
        best = np.zeros((len(part), len(distinct)))
        np.maximum.at(best, owner, ious)
        best = best[:, columns.ravel()]
        positions = np.arange(start, start + len(part))
        evaluator._add(taus, best, best, np.full(len(part), -1, np.int32), positions)
    return evaluator.compute()
