"""Boxes at every level against a plain OpenCV loop, and against planted mistakes that the comparison must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from wsol_lib import _levels
from wsol_lib.boxes import box_at, iou, level_boxes

Box = tuple[int, int, int, int]


def half_open(contour: np.ndarray) -> Box:
    x, y, w, h = cv2.boundingRect(contour)
    return x, y, x + w, y + h


def outlines(shown: np.ndarray) -> tuple[np.ndarray, ...]:
    return cv2.findContours(shown.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]


def slow_boxes(score_map: np.ndarray, largest: Callable = cv2.contourArea) -> dict[int, tuple[Box, list[Box]]]:
    """The 1000 thresholds of wsolevaluation one by one: the single box and all boxes of each 8-bit threshold."""
    image = (255 * score_map).astype(np.uint8)
    found: dict[int, tuple[Box, list[Box]]] = {}
    for tau in np.arange(0, 1, 0.001):
        level = int(tau * image.max())
        if level not in found:
            contours = outlines(image > level)
            boxes = sorted(half_open(c) for c in contours) or [(0, 0, 0, 0)]
            found[level] = (half_open(max(contours, key=largest)) if contours else (0, 0, 0, 0), boxes)
    return found


def differences(score_map: np.ndarray) -> int:
    """At how many levels the single box or the set of all boxes differs from the slow loop."""
    slow = slow_boxes(score_map)
    levels, single = level_boxes(score_map)
    levels_all, every = level_boxes(score_map, all_components=True)
    assert levels.tolist() == levels_all.tolist() == sorted(slow)
    return sum(
        tuple(one[0].tolist()) != slow[level][0] or sorted(map(tuple, many.tolist())) != slow[level][1]
        for level, one, many in zip(levels.tolist(), single, every, strict=True)
    )


def random_map(kind: str, rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(1, 30, 2)
    steps = int(rng.integers(2, 9))
    noise = rng.random((height, width))
    if kind == "noise":
        return noise
    if kind == "tied":
        return np.floor(noise * steps) / steps
    if kind == "smooth":
        grid = rng.random((int(rng.integers(2, 8)), int(rng.integers(2, 8))))
        return cv2.resize(grid, (int(width), int(height)), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    if kind == "lines":
        return np.where(rng.random((height, width)) > rng.choice([0.3, 0.6, 0.85]), np.ceil(noise * steps) / steps, 0)
    holes = ndimage.binary_dilation(noise > 0.9, iterations=2) ^ (rng.random((height, width)) > 0.95)  # "holes"
    return holes * np.ceil(rng.random((height, width)) * 2) / 2


KINDS = ("noise", "tied", "smooth", "lines", "holes")


def random_maps(count: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield random_map(KINDS[i % len(KINDS)], rng)


def drawing(rows: str) -> np.ndarray:
    return np.array([[int(c) / 9 for c in row] for row in rows.split()])


SHAPES = {
    "holes in holes": "999999999 900000009 909999909 909000909 909090909 909000909 909999909 900000009 999999999",
    "diagonal chain": "9000 0900 0090 0009",
    "diagonal ring": "00900 09090 90009 09090 00900",
    "one-pixel lines": "00000 09990 00000 90009 90009",
    "touching the frame": "99099 90009 00000 90009 99099",
    "equal blocks": "990099 990099 000000 990099 990099",
    "equal blocks on a slope": "9900990 9908990 0000000 0990000 0990000",
    "single pixels": "90900 00000 00909",
    "ring with a tail": "00900 09090 00900 00900 00900",
    "leak through a corner": "9999 9009 9090 9999",
}


@pytest.mark.parametrize("name", SHAPES)
def test_drawn_shapes(name):
    assert differences(drawing(SHAPES[name])) == 0


def test_fast_sample_of_random_maps():
    assert sum(differences(m) for m in random_maps(150, seed=1)) == 0


@pytest.mark.slow
def test_thousands_of_random_maps():
    assert sum(differences(m) for m in random_maps(2000, seed=2)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("side", [7, 14, 28])
def test_maps_of_full_size(side):
    grid = np.random.default_rng(side).random((side, side))
    score_map = cv2.resize(grid, (224, 224), interpolation=cv2.INTER_CUBIC)
    score_map -= score_map.min()
    assert differences(score_map / score_map.max()) == 0


@pytest.mark.slow
def test_pixel_noise_of_full_size():
    noise = np.random.default_rng(0).random((224, 200))
    levels, every = level_boxes(noise, all_components=True)
    single = level_boxes(noise)[1]
    image = (255 * noise).astype(np.uint8)
    for level in levels.tolist()[::10]:
        contours = outlines(image > level)
        assert tuple(single[level][0].tolist()) == half_open(max(contours, key=cv2.contourArea))
        assert sorted(map(tuple, every[level].tolist())) == sorted(map(half_open, contours))


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)))
def test_any_small_map(image):
    assert differences(image / 255) == 0


def planted_pixel_counts(monkeypatch):
    """Pixels in place of contour areas."""
    tree = _levels._tree
    monkeypatch.setattr(_levels, "_tree", lambda g, o, b, e, mode, end: tree(g, o, b, e, _levels.PIXELS, end))


def planted_reversed_ties(monkeypatch):
    """The first component wins a tie."""
    largest = _levels._largest
    monkeypatch.setattr(_levels, "_largest", lambda nodes, count, mode: largest(nodes, count, _levels.PIXELS))


def planted_missing_one(monkeypatch):
    """Boxes end at their last pixel instead of after it."""
    largest = _levels._largest

    def short(nodes, count, mode):
        best = largest(nodes, count, mode)
        best[:, 2:4] -= 1
        return best

    monkeypatch.setattr(_levels, "_largest", short)


def planted_open_holes(monkeypatch):
    """Holes are not filled, so that they count against the component around them."""
    monkeypatch.setattr(_levels, "_fill", lambda grid, bits, width: grid)


@pytest.mark.parametrize(
    "plant", [planted_pixel_counts, planted_reversed_ties, planted_missing_one, planted_open_holes]
)
def test_comparison_notices_planted_mistakes(plant, monkeypatch):
    for name in ("_tree", "_shown", "_holes", "_fill", "_largest", "_grid", "_rising", "_close", "_grow"):
        monkeypatch.setattr(_levels, name, getattr(_levels, name).py_func)
    monkeypatch.setattr(_levels, "components", _levels.components.py_func)
    maps = [drawing(rows) for rows in SHAPES.values()]
    with np.errstate(over="ignore"):
        assert sum(map(differences, maps)) == 0
        plant(monkeypatch)
        assert sum(map(differences, maps)) > 0


def slow_labels(shown: np.ndarray, component: str) -> tuple[Box, list[Box]]:
    """The largest component and all of them with scipy; argmax takes the first label, the first in reading order."""
    labels, n = ndimage.label(shown, np.ones((3, 3)) if component == "pixels" else None)
    if n == 0:
        return (0, 0, 0, 0), [(0, 0, 0, 0)]
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    sizes = np.bincount(labels.ravel())[1:]
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    return boxes[int(np.argmax(sizes if component == "pixels" else areas))], sorted(boxes)


@pytest.mark.parametrize("component", ["pixels", "bbox"])
def test_other_components(component):
    for score_map in random_maps(60, seed=3):
        image = (255 * score_map).astype(np.uint8)
        levels, single = level_boxes(score_map, component)
        every = level_boxes(score_map, component, all_components=True)[1]
        for level in levels.tolist():
            largest, boxes = slow_labels(image > level, component)
            assert tuple(single[level][0].tolist()) == largest
            assert sorted(map(tuple, every[level].tolist())) == boxes


def test_outlines_side_by_side_come_in_the_order_of_opencv():
    blocks = drawing("9900990 9900990 0000000 0990000 0990000")
    expected = [half_open(c) for c in outlines(blocks > 0)]
    assert [tuple(b) for b in box_at(blocks, 0.5, all_components=True).tolist()] == expected


def test_hand_worked_box():
    score_map = torch.zeros(10, 10)
    score_map[3:7, 2:6] = 1
    box = box_at(score_map, 0.5)
    assert box.tolist() == [[2, 3, 6, 7]]
    assert iou(box, torch.tensor([[2, 3, 5, 6]]), inclusive=True).item() == pytest.approx(0.64)


@pytest.mark.parametrize("blank", [torch.zeros(6, 8), torch.full((6, 8), torch.nan)])
def test_zero_and_nan_maps_give_the_zero_box(blank):
    levels, boxes = level_boxes(blank)
    assert levels.tolist() == [0]
    assert boxes[0].tolist() == level_boxes(blank, all_components=True)[1][0].tolist() == [[0, 0, 0, 0]]
    assert box_at(blank, 0.3).tolist() == [[0, 0, 0, 0]]


def test_constant_map_fills_the_frame_at_every_level():
    levels, boxes = level_boxes(torch.full((6, 8), 0.5))
    assert len(levels) == 127
    assert all(b.tolist() == [[0, 0, 8, 6]] for b in boxes)


def test_box_at_is_the_level_of_its_threshold():
    score_map = random_map("smooth", np.random.default_rng(4))
    levels, boxes = level_boxes(score_map)
    for tau in (0, 0.2, 0.5, 0.999):
        level = int(tau * int(255 * score_map.max()))
        assert box_at(score_map, tau).tolist() == boxes[levels.tolist().index(level)].tolist()


@pytest.mark.parametrize("tau", [-0.1, 1, 1.5])
def test_tau_outside_its_range(tau):
    with pytest.raises(ValueError, match=r"tau lies in \[0,1\)"):
        box_at(torch.zeros(3, 3), tau)


@pytest.mark.parametrize("bad", [torch.full((3, 3), 1.5), torch.full((3, 3), -0.1), torch.zeros(3), torch.zeros(0, 3)])
def test_maps_that_are_no_score_maps(bad):
    with pytest.raises(ValueError, match="score map"):
        level_boxes(bad)


IOUS = [
    ((1, 2, 5, 6), (3, 1, 4, 5), True, 8 / 27),
    ((0, 0, 9, 9), (5, 0, 14, 9), True, 1 / 3),
    ((0, 0, 9, 9), (5, 0, 14, 9), False, 0.285714),
    ((0, 0, 9, 9), (0, 0, 9, 4), True, 0.5),
    ((0, 0, 9, 9), (0, 0, 9, 4), False, 0.4444),
    ((3, 3, 3, 3), (3, 3, 3, 3), True, 1),
    ((3, 3, 3, 3), (3, 3, 3, 3), False, 0),
    ((5, 5, 2, 2), (0, 0, 9, 9), True, 0),
]


@pytest.mark.parametrize(("a", "b", "inclusive", "expected"), IOUS)
def test_iou_worked_by_hand(a, b, inclusive, expected):
    for dtype in (torch.float32, torch.float64, torch.int64):
        value = iou(torch.tensor([a], dtype=dtype), torch.tensor([b], dtype=dtype), inclusive)
        assert value.item() == pytest.approx(expected, abs=1e-4)


def test_iou_of_all_pairs_and_of_none():
    a, b = torch.rand(3, 4), torch.rand(5, 4)
    assert iou(a, b).shape == (3, 5)
    assert torch.allclose(iou(a, b), iou(b, a).T)
    assert iou(a, torch.zeros(0, 4)).shape == (3, 0)
