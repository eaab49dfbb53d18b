"""What turns a map into supervision: deep descriptor transforming (DDT), boxes and seeds from maps, boxes made wrong.

DDT (Wei et al., 2017; PSOL, Zhang et al., 2020, takes its boxes to learn from) looks for what the pictures of one class
have in common. A descriptor is the vector x of C channels at one place of a feature map. With their mean m and their
covariance S over all places of all pictures of the class, the map is the projection on the first eigenvector v of S,

    P(x) = v . (x - m)

No box, no gradient, nothing trained: one pass over the pictures. PSOL shows the places where P is above 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from wsol_lib.boxes import box_at, to_bytes
from wsol_lib.maps import normalize, resize

Threshold = Literal["otsu", "zero"] | float
SIDE = 224  # maps are thresholded at this size, as evaluations do


@dataclass(frozen=True)
class Moments:
    """Sums over descriptors, in float64: enough for their principal component, however many pictures they come from.

    Sums over parts of the pictures add up to those over all (`+`).

    Attributes:
        count: how many descriptors.
        total: Float[C], their sum.
        second: Float[C,C], the sum of their outer products.
    """

    count: int
    total: Tensor
    second: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The sums over all places of maps Float[N,C,h,w]."""
        x = features.double().permute(0, 2, 3, 1).flatten(0, 2)  # [Nhw,C]
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.second + other.second)

    def component(self) -> tuple[Tensor, Tensor]:
        """The mean m Float[C] of the descriptors and the first eigenvector v Float[C] of their covariance, in float64.

        The sign of an eigenvector is arbitrary, and the convention of libraries (the largest loading is positive) knows
        nothing of objects. Here **the loadings add up to a positive number**. Over the descriptors, P and the mean
        activation `x.mean()` have the covariance `lambda v.sum() / C`, lambda being the eigenvalue: so the map rises
        where the network responds to more. Channels after a ReLU are near 0 on empty ground, and respond to things. No
        label and no box is asked. Where channels take both signs the rule still decides, with less reason.

        Returns:
            (m, v); v has length 1, or is 0 where all descriptors are equal.
        """
        mean = self.total / self.count
        covariance = self.second / self.count - mean.outer(mean)  # [C,C]
        last = len(mean) - 1
        values, vectors = scipy.linalg.eigh(covariance.cpu().numpy(), subset_by_index=[last, last])
        rounding = 1e-12 * float(self.second.trace()) / self.count
        direction = torch.from_numpy(vectors[:, 0]).to(mean) * (values[0] > rounding)
        return mean, direction if direction.sum() >= 0 else -direction


def project(features: Tensor, mean: Tensor, direction: Tensor) -> Tensor:
    """P = v . (x - m) at every place.

    Args:
        features: Float[N,C,h,w].
        mean, direction: m and v, Float[C] for all pictures or Float[N,C], one for each.

    Returns:
        Float[N,h,w], any range.
    """
    mean, direction = (part.to(features).expand(len(features), -1) for part in (mean, direction))  # [N,C]
    return torch.einsum("nchw,nc->nhw", features, direction) - (mean * direction).sum(1)[:, None, None]


def ddt_maps(features: Tensor) -> Tensor:
    """DDT of the pictures of one class: what they have in common is above 0 (see the module's text).

    The sign is that of `Moments.component`. The maps do not change when all descriptors are moved by one vector, but
    for the sign neither when they are rotated.

    Args:
        features: Float[N,C,h,w] of N pictures of one class.

    Returns:
        Float[N,h,w], of mean 0 over all places together.
    """
    return project(features, *Moments.of(features).component())


def boxes_from_maps(maps: Tensor, image_sizes: Tensor, threshold: Threshold = "otsu") -> list[Tensor]:
    """The box around the largest piece of what a map shows, as pseudo label of its picture.

    A map is resized to 224 x 224 (bicubic, `maps.resize`), thresholded there, and the bounding box of the largest
    8-connected piece, by pixel count, is moved to the original picture.

    Args:
        maps: Float[N,h,w] of the whole pictures, any range.
        image_sizes: Int[N,2], (width, height) of the original pictures.
        threshold: "otsu": of the min-max normalised map in 8 bits, without any box; a number in [0,1): what lies above
            it in that map; "zero": what is above 0 in the map as it is (PSOL's rule for DDT; there the piece is taken
            in the small map, and enlarged by nearest neighbours).

    Returns:
        For each picture Float[1,4], half-open, in pixels of the original; Float[0,4] where the map shows nothing to
        learn from: it is constant, not finite, or nowhere above 0 for "zero".

    Raises:
        ValueError: the threshold is none of these, or there are not as many sizes as maps.
    """
    if threshold not in ("otsu", "zero") and not _is_level(threshold):
        raise ValueError(f'a threshold is "otsu", "zero" or a number in [0,1), not {threshold!r}')
    return [_box(*one, threshold) for one in zip(maps.detach().cpu(), torch.as_tensor(image_sizes), strict=True)]


def _box(score_map: Tensor, image_size: Tensor, threshold: Threshold) -> Tensor:
    if not normalize(score_map[None]).any():  # asked before the resize, whose rounding makes a constant vary
        return torch.zeros(0, 4)
    large = resize(score_map[None].double(), SIDE)[0]  # [S,S]
    box = box_at(_shown(large, threshold).double(), 0.0, "pixels")  # [1,4], zeros where nothing is shown
    scale = image_size.repeat(2) / SIDE  # [4]
    return (box * scale).float() if box.any() else torch.zeros(0, 4)


def _is_level(threshold: object) -> bool:
    return isinstance(threshold, int | float) and 0 <= threshold < 1


def _shown(score_map: Tensor, threshold: Threshold) -> Tensor:
    """Which pixels Bool[S,S] of a raw map lie above the threshold."""
    if threshold == "zero":
        return score_map > 0
    scores = normalize(score_map[None])[0]  # [S,S]
    if threshold == "otsu":
        levels = to_bytes(scores).astype(np.uint8)
        cut, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
        return torch.from_numpy(levels > cut)
    return scores > threshold


def _drawn(candidates: Tensor, count: Tensor, noise: Tensor) -> Tensor:
    """Of each row of candidates Bool[B,P] the `count` Int[B] with the most noise Float[B,P] in [0,1): Bool[B,P]."""
    ranks = noise.masked_fill(~candidates, -1).argsort(1, descending=True).argsort(1)  # [B,P]
    return ranks < count[:, None]


def otsu_seeds(
    cam: Tensor,
    count: int = 1,
    *,
    top: float = 1.0,
    low: float = 0.1,
    threshold: Literal["otsu"] | float = "otsu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Places of a map that stand for foreground and background: the pseudo labels of TeD-Loc, to be drawn at each step.

    Otsu's threshold splits the min-max normalised map, in 8 bits. A foreground place lies above it and among the
    highest `top` of all places. A background place does not lie above it and is among the lowest `low`. A place that
    ties with the last of these is among them too, so where a ReLU made half a map 0 no corner is preferred. From both
    kinds the same number of places is drawn, uniformly and without repetition.

    That much is the paper's (Murtaza et al., 2025, appendix A); its numbers are not known. The defaults are the
    published runs of its authors' earlier code, which also grows each seed to 3x3 pixels of a map as large as the
    picture. Here a place is one of a coarse grid, and is left as it is.

    Args:
        cam: Float[B,h,w] of each picture's label, any range.
        count: how many places of each kind; fewer where one kind has fewer candidates.
        top, low: shares of the h x w places, in (0,1]; at least one place.
        threshold: a number in [0,1) splits the min-max normalised map in place of Otsu's; not the paper's.
        generator: on the CPU. One number is drawn a place, whatever the map. None: torch's global one.

    Returns:
        Int[B,h,w]: 1 foreground, 0 background, -1 neither; a map that is constant or not finite is -1 everywhere.

    Raises:
        ValueError: count is below 1, or a share is outside (0,1], or no such threshold.
    """
    if count < 1 or not (0 < top <= 1 and 0 < low <= 1):
        raise ValueError(f"seeds need count >= 1 and shares in (0,1], not count = {count}, top = {top}, low = {low}")
    if threshold != "otsu" and not _is_level(threshold):
        raise ValueError(f'seeds need a threshold "otsu" or a number in [0,1), not {threshold!r}')
    maps = normalize(cam.detach().cpu().double())
    shown = torch.stack([_shown(score_map, threshold) for score_map in maps]).flatten(1)  # [B,P]
    scores = maps.flatten(1)  # [B,P]
    high, deep = (max(1, round(share * scores.shape[1])) for share in (top, low))
    foreground = shown & (scores >= scores.topk(high).values[:, -1:])
    background = ~shown & (scores <= scores.kthvalue(deep, keepdim=True).values)
    each = torch.minimum(foreground.sum(1), background.sum(1)).clamp(max=count)  # [B]
    noise = torch.rand(scores.shape, generator=generator, dtype=scores.dtype)
    seeds = torch.full(scores.shape, -1)
    seeds[_drawn(foreground, each, noise)] = 1
    seeds[_drawn(background, each, noise)] = 0
    return seeds.view(cam.shape).to(cam.device)


def disturb(box: Tensor, image_size: tuple[int, int], noise: float, generator: np.random.Generator) -> Tensor:
    """A pseudo box made wrong on purpose: with probability `noise` a box of the same size at a random place.

    The place is uniform over all where the box fits, so that a large box stays partly right. Three numbers are drawn,
    whatever the noise: with the same generator, the boxes that are wrong at a low noise are wrong at a higher one too,
    and in the same place.

    Args:
        box: Float[4] in pixels of the picture.
        image_size: (width, height) of the picture.
        noise: in [0,1].

    Returns:
        Float[4].

    Raises:
        ValueError: noise is outside [0,1].
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is a share of boxes in [0,1], not {noise}")
    draw, *place = generator.random(3).tolist()
    if draw >= noise:
        return box
    side = box[2:] - box[:2]  # [2]
    corner = (box.new_tensor(image_size) - side).clamp(min=0) * box.new_tensor(place)  # [2]
    return torch.cat([corner, corner + side])
