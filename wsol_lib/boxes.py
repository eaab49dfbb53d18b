"""From a score map to boxes, at one threshold or at all of them, and how well boxes overlap."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol_lib import _levels

Component = Literal["contour", "pixels", "bbox"]
MODES = {"contour": _levels.CONTOUR, "pixels": _levels.PIXELS, "bbox": _levels.BBOX}


def iou(a: Tensor, b: Tensor, inclusive: bool = False) -> Tensor:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a, b: Float[N,4] and Float[M,4] as `[x0, y0, x1, y1]`, in pixels.
        inclusive: the ends belong to the box, so that widths are `x1 - x0 + 1` (the "+1" of the published code).

    Returns:
        Float[N,M] in [0,1]. An inverted box (x1 < x0) is empty, and two empty boxes overlap by 0.
    """
    one = 1 if inclusive else 0
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (high - low + one).clamp(min=0).prod(-1)  # [N,M]
    areas = [(x[:, 2:] - x[:, :2] + one).clamp(min=0).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inter
    return torch.where(union > 0, inter / union.clamp(min=torch.finfo(torch.float32).tiny), torch.zeros(()))


def to_bytes(score_map: Tensor | NDArray[np.floating]) -> NDArray[np.uint16]:
    """The 8-bit levels trunc(255 s) of a score map Float[h,w] in [0,1], computed in float64: UInt16[h,w].

    A map with a NaN counts as zero everywhere.

    Raises:
        ValueError: the map is not two-dimensional, empty, or leaves [0,1].
    """
    scores = np.asarray(score_map.detach().cpu() if isinstance(score_map, Tensor) else score_map, np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"a score map is Float[h,w]; this one has the shape {scores.shape}")
    low, high = scores.min(), scores.max()  # NaN if there is one
    if np.isnan(low):
        return np.zeros(scores.shape, np.uint16)
    if low < 0 or high > 1:
        raise ValueError(f"a score map lies in [0,1], this one in [{low:g}, {high:g}]: normalise it first")
    return (255 * scores).astype(np.uint16)


def level_boxes(
    score_map: Tensor | NDArray[np.floating], component: Component = "contour", all_components: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The boxes of a score map at every 8-bit threshold, in one pass over its pixels.

    Threshold t shows the pixels with trunc(255 s) > t. Equal, box for box, to one `cv2.findContours` (RETR_TREE,
    CHAIN_APPROX_SIMPLE) and `cv2.boundingRect` a threshold, as wsolevaluation does (Choe et al., CVPR 2020).

    Args:
        score_map: Float[h,w] in [0,1]; NaN counts as a zero map.
        component: which component is the largest. "contour": 8-connected, by the area of the polygon through its
            pixel centres, a tie going to the one that OpenCV lists first; "pixels": 8-connected, by pixel count;
            "bbox": 4-connected, by the area of the bounding box; their ties go to the first in reading order.
        all_components: every component instead of the largest; for "contour" the outlines of holes too, as OpenCV
            returns them. The one whose first pixel comes last in reading order stands first.

    Returns:
        `levels` Int[L], the distinct thresholds int(tau * max) of all tau in [0,1): 0 to max - 1, or 0 alone for a
        zero map; and for each level its half-open boxes Int[N,4] in pixels. Where nothing is shown: [[0, 0, 0, 0]].
    """
    levels = to_bytes(score_map)
    count = max(1, int(levels.max()))
    nodes, largest = _levels.components(levels, count, MODES[component], all_components)
    if not all_components:
        return torch.arange(count), list(torch.from_numpy(largest[:, :4].copy()).split(1))
    boxes, start = _levels.by_level(nodes, count)
    return torch.arange(count), list(torch.from_numpy(boxes).split(np.diff(start).tolist()))


def box_at(
    score_map: Tensor | NDArray[np.floating],
    tau: float,
    component: Component = "contour",
    all_components: bool = False,
) -> Tensor:
    """The half-open boxes Int[N,4] of what lies above `tau` times the maximum of a score map, in 8 bits.

    Arguments as in `level_boxes`; N is 1 unless `all_components`.

    Raises:
        ValueError: tau is outside [0,1).
    """
    if not 0 <= tau < 1:
        raise ValueError(f"a threshold tau lies in [0,1); this one is {tau}")
    levels = to_bytes(score_map)
    shown = (levels > int(tau * levels.max())).astype(np.uint16)
    nodes, largest = _levels.components(shown, 1, MODES[component], all_components)
    return torch.from_numpy(_levels.by_level(nodes if all_components else largest, 1)[0])
