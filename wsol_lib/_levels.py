"""All thresholds of a score map at once: the component trees behind `boxes.level_boxes` and `metrics.Evaluator`.

A map is given as levels q: level k shows the pixels with q > k. As k falls the shown components only grow and merge,
so one union-find over the pixels in sorted order meets every component of every level once, instead of one contour
search a level. Three facts make it equal to `cv2.findContours` and `cv2.contourArea`:

1. the outer outlines are the 8-connected components of what is shown; the hole outlines are the 4-connected
   components of the rest that do not reach the frame, one pixel larger on each side;
2. the polygon through the pixel centres of a component *without holes* has an area that is local: each 2x2 window
   adds 1/2 if three of its pixels are shown and 1 if all four are;
3. what lies inside a hole encloses less than what surrounds it. So the largest outline is found on the map with its
   holes filled up to the level at which they open to the frame, where 2 is exact.

Ties between equal areas go to the component whose first pixel in reading order comes last: OpenCV lists it first.

Grids have a border of one pixel and rows of 2**bits cells, flattened, so that pixel p has x = p mod 2**bits - 1 and
y = p >> bits - 1. A node is one component: a row of eight integers, `x0, y0, x1, y1` (half-open), LOW, HIGH (it is
exactly this at the levels LOW <= k < HIGH), FIRST (its first pixel) and SIZE (twice its polygon area, or its pixels).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Pixels = NDArray[np.uint32]
Floats = NDArray[np.float64]

CONTOUR, PIXELS, BBOX = 0, 1, 2
X0, Y0, X1, Y1, LOW, HIGH, FIRST, SIZE = range(8)
UNMET = np.uint32(0xFFFFFFFF)
ONE = np.uint32(1)
PIXEL = np.int32(1)


def _ring_table() -> NDArray[np.uint8]:
    """What to do with each of the 256 patterns around a new pixel, for 4- and 8-connectivity: UInt8[2,256,6].

    Bit i of a pattern is neighbour i on the ring east, south-east, south, ... north-east. A row holds: by how much
    twice the polygon area grows; how many groups of neighbours to look up; one neighbour of each group. Neighbours
    that the ring itself connects form one group.
    """
    table = np.zeros((2, 256, 6), np.uint8)
    for pattern in range(256):
        on = [bool(pattern >> i & 1) for i in range(8)]
        area = sum(on[i] + on[i + 1] + on[(i + 2) % 8] >= 2 for i in (0, 2, 4, 6))
        sides = [i for i in (0, 2, 4, 6) if on[i] and not (i and on[i - 1] and on[i - 2])]
        corners = [i for i in (1, 3, 5, 7) if on[i] and not on[i - 1] and not on[(i + 1) % 8]]
        for eight, groups in enumerate((sides, sides + corners)):
            table[eight, pattern, : 2 + len(groups)] = [area, len(groups), *groups]
    return table


RING = _ring_table()


@njit(cache=True, nogil=True)
def _grid(levels: NDArray[np.uint16]) -> tuple[Ints, int]:
    """Levels UInt16[h,w] as a flat grid with its border of zeros, and the bits of its row length."""
    height, width = levels.shape
    bits = 1
    while 1 << bits < width + 2:
        bits += 1
    grid = np.zeros((height + 2, 1 << bits), np.int32)
    grid[1:-1, 1 : width + 1] = levels
    return grid.ravel(), bits


@njit(cache=True, nogil=True)
def _rising(grid: Ints, bits: int, width: int, count: int) -> Pixels:
    """The pixels of a grid whose levels are <= count, lowest first (a counting sort): Int[h*w]."""
    height = (grid.size >> bits) - 2
    start = np.zeros(count + 2, np.int32)
    order = np.empty(height * width, np.uint32)
    for y in range(1, height + 1):
        for p in range((y << bits) + 1, (y << bits) + 1 + width):
            start[grid[p] + 1] += 1
    for k in range(count + 1):
        start[k + 1] += start[k]
    for y in range(1, height + 1):
        for p in range((y << bits) + 1, (y << bits) + 1 + width):
            order[start[grid[p]]] = p
            start[grid[p]] += 1
    return order


@njit(cache=True, nogil=True)
def _find(link: Pixels, i: np.uint32) -> np.uint32:
    while link[i] != i:
        link[i] = link[link[i]]
        i = link[i]
    return i


@njit(cache=True, nogil=True)
def _pattern(label: Pixels, p: np.uint32, row: np.uint32) -> np.uint32:
    """Which neighbours of p have been met: the pattern of `RING`."""
    return (
        np.uint32(label[p + ONE] != UNMET)
        | np.uint32(label[p + row + ONE] != UNMET) << np.uint32(1)
        | np.uint32(label[p + row] != UNMET) << np.uint32(2)
        | np.uint32(label[p + row - ONE] != UNMET) << np.uint32(3)
        | np.uint32(label[p - ONE] != UNMET) << np.uint32(4)
        | np.uint32(label[p - row - ONE] != UNMET) << np.uint32(5)
        | np.uint32(label[p - row] != UNMET) << np.uint32(6)
        | np.uint32(label[p - row + ONE] != UNMET) << np.uint32(7)
    )


@njit(cache=True, nogil=True)
def _grow(
    record: Ints, i: np.uint32, x0: np.int32, y0: np.int32, x1: np.int32, y1: np.int32, first: np.int32, size: np.int32
) -> None:
    """Widen component i by a box, its first pixel and its size."""
    record[i, X0] = min(record[i, X0], x0)
    record[i, Y0] = min(record[i, Y0], y0)
    record[i, X1] = max(record[i, X1], x1)
    record[i, Y1] = max(record[i, Y1], y1)
    record[i, FIRST] = min(record[i, FIRST], first)
    record[i, SIZE] += size


@njit(cache=True, nogil=True)
def _close(nodes: Ints, n: int, record: Ints, i: np.uint32, level: int) -> int:
    """Write component i as node n if `level` is a new one; the number of nodes so far."""
    if record[i, LOW] == level:
        return n
    for column in range(8):
        nodes[n, column] = record[i, column]
    nodes[n, LOW] = min(record[i, LOW], level)
    nodes[n, HIGH] = max(record[i, LOW], level)
    record[i, LOW] = level
    return n + 1


@njit(cache=True, nogil=True)
def _tree(grid: Ints, order: Pixels, bits: int, eight: bool, mode: int, end: int) -> Ints:
    """Every component met while the pixels of `order` are added, one level after another: nodes Int[n,8].

    `order` rises or falls through the levels of `grid`; `end` is the level after its last. SIZE is twice the polygon
    area if mode is CONTOUR, else the number of pixels. `record` holds the components now alive, LOW their level.
    """
    row = np.uint32(1) << np.uint32(bits)
    steps = np.array([ONE, row + ONE, row, row - ONE, -ONE, -row - ONE, -row, ONE - row], np.uint32)
    ring = RING[1 if eight else 0]
    label = np.full(grid.size, UNMET, np.uint32)  # pixel -> component
    link = np.empty(order.size, np.uint32)  # component -> the one it has merged into
    record = np.empty((order.size, 8), np.int32)
    nodes = np.empty((order.size, 8), np.int32)
    n, made = 0, np.uint32(0)
    for at in range(order.size):
        p = order[at]
        level, x, y = grid[p], np.int32((p & (row - ONE)) - ONE), np.int32((p >> np.uint32(bits)) - ONE)
        pattern = _pattern(label, p, row)
        size = np.int32(ring[pattern, 0]) if mode == CONTOUR else np.int32(1)
        if ring[pattern, 1] == 0:
            link[made], label[p] = made, made
            record[made, X0], record[made, Y0], record[made, X1], record[made, Y1] = x, y, x + 1, y + 1
            record[made, LOW], record[made, FIRST], record[made, SIZE] = level, p, size
            made += ONE
            continue
        i = _find(link, label[np.uint32(p + steps[ring[pattern, 2]])])
        n = _close(nodes, n, record, i, level)
        for group in range(np.uint32(3), np.uint32(ring[pattern, 1]) + np.uint32(2)):
            j = _find(link, label[np.uint32(p + steps[ring[pattern, group]])])
            if i != j:
                n = _close(nodes, n, record, j, level)
                link[j] = i
                r = record[j]
                _grow(record, i, r[X0], r[Y0], r[X1], r[Y1], r[FIRST], r[SIZE])
        label[p] = i
        _grow(record, i, x, y, x + PIXEL, y + PIXEL, np.int32(p), size)
    for k in range(made):
        if link[k] == k:
            n = _close(nodes, n, record, np.uint32(k), end)
    return nodes[:n]


@njit(cache=True, nogil=True)
def _shown(grid: Ints, order: Pixels, bits: int, eight: bool, mode: int) -> Ints:
    """The nodes of what the levels show; `order` holds all pixels, lowest first."""
    lowest = 0
    while lowest < order.size and grid[order[lowest]] == 0:
        lowest += 1
    return _tree(grid, order[lowest:][::-1].copy(), bits, eight, mode, 0)


@njit(cache=True, nogil=True)
def _fill(grid: Ints, bits: int, width: int) -> Ints:
    """The grid with each pixel raised to the level at which it is joined to the frame through what is hidden.

    The grey-level reconstruction of Vincent (1993): one scan down, one up, and a queue for what they leave.
    """
    row, height = 1 << bits, (grid.size >> bits) - 2
    filled, queued = grid.copy(), np.zeros(grid.size, np.bool_)
    queue, head, tail = np.empty(grid.size, np.int32), 0, 0
    for y in range(1, height + 1):
        for p in range((y << bits) + 1, (y << bits) + 1 + width):
            filled[p] = max(grid[p], min(filled[p - 1], filled[p - row]))
    for y in range(height, 0, -1):
        for p in range((y << bits) + width, y << bits, -1):
            level = max(grid[p], min(filled[p], filled[p + 1], filled[p + row]))
            filled[p] = level
            if max(grid[p + 1], level) < filled[p + 1] or max(grid[p + row], level) < filled[p + row]:
                queue[tail], queued[p] = p, True
                tail += 1
    while head != tail:
        p = queue[head]
        queued[p] = False
        head = (head + 1) % queue.size
        for q in (p - row, p - 1, p + 1, p + row):
            level = max(grid[q], filled[p])
            if level < filled[q]:
                filled[q] = level
                if not queued[q]:
                    queue[tail], queued[q] = q, True
                    tail = (tail + 1) % queue.size
    return filled


@njit(cache=True, nogil=True)
def _holes(grid: Ints, filled: Ints, order: Pixels, bits: int, count: int) -> Ints:
    """The hole outlines of all levels as nodes; `order` holds all pixels, lowest first."""
    inside = np.empty(order.size, np.uint32)
    n = 0
    for i in range(order.size):
        inside[n] = order[i]
        n += filled[order[i]] > grid[order[i]]
    nodes = _tree(grid, inside[:n], bits, False, PIXELS, count)
    for i in range(nodes.shape[0]):
        nodes[i, X0] -= 1
        nodes[i, Y0] -= 1
        nodes[i, X1] += 1
        nodes[i, Y1] += 1
        nodes[i, HIGH] = min(nodes[i, HIGH], filled[nodes[i, FIRST]])
    return nodes


@njit(cache=True, nogil=True)
def _largest(nodes: Ints, count: int, mode: int) -> Ints:
    """The largest node of each level, Int[count,8], with LOW = k and HIGH = k + 1; zeros where none is shown."""
    best = np.zeros((count, 8), np.int32)
    best[:, SIZE] = -1
    for i in range(nodes.shape[0]):
        size, first = nodes[i, SIZE], nodes[i, FIRST]
        if mode == BBOX:
            size = (nodes[i, X1] - nodes[i, X0]) * (nodes[i, Y1] - nodes[i, Y0])
        for k in range(nodes[i, LOW], nodes[i, HIGH]):
            wins_tie = first > best[k, FIRST] if mode == CONTOUR else first < best[k, FIRST]
            if size > best[k, SIZE] or (size == best[k, SIZE] and wins_tie):
                best[k] = nodes[i]
                best[k, SIZE] = size
    best[:, LOW] = np.arange(count)
    best[:, HIGH] = np.arange(1, count + 1)
    return best


@njit(cache=True, nogil=True)
def components(levels: NDArray[np.uint16], count: int, mode: int, everything: bool) -> tuple[Ints, Ints]:
    """What the levels 0 <= k < count of UInt16[h,w] show: all nodes Int[n,8], the largest of each level Int[count,8].

    The largest is by polygon area (CONTOUR, 8-connected; the outlines of holes are among all nodes), by pixels
    (PIXELS, 8-connected; a tie goes to the first in reading order) or by area of the bounding box (BBOX, 4-connected,
    the same tie). A level that shows nothing has one box of zeros. No level may exceed `count`. Without `everything`
    there may be less among all nodes.
    """
    width = levels.shape[1]
    grid, bits = _grid(levels)
    order = _rising(grid, bits, width, count)
    top = grid[order[-1]]
    blank = np.array([[0, 0, 0, 0, top, count, 0, 0]], np.int32)[: count - top]
    if mode != CONTOUR:
        nodes = _shown(grid, order, bits, mode == PIXELS, mode)
        return np.concatenate((nodes, blank)), _largest(nodes, count, mode)
    filled = _fill(grid, bits, width)
    holes = _holes(grid, filled, order, bits, count)
    if holes.shape[0] == 0:
        nodes = _shown(grid, order, bits, True, CONTOUR)
        return np.concatenate((nodes, blank)), _largest(nodes, count, CONTOUR)
    solid = _shown(filled, _rising(filled, bits, width, count), bits, True, CONTOUR)
    nodes = _shown(grid, order, bits, True, CONTOUR) if everything else solid
    return np.concatenate((nodes, holes, blank)), _largest(solid, count, CONTOUR)


def by_level(nodes: Ints, count: int) -> tuple[Ints, NDArray[np.int64]]:
    """The boxes of each level, Int[N,4], those of level k from `start[k]` to `start[k + 1]`; start Int[count+1].

    Within a level the box whose first pixel comes last stands first.
    """
    change = np.bincount(nodes[:, LOW], minlength=count + 1) - np.bincount(nodes[:, HIGH], minlength=count + 1)
    start = np.concatenate(([0], np.cumsum(np.cumsum(change)[:count])))
    boxes = np.empty((start[-1], 4), np.int32)
    _spread(nodes, np.argsort(-nodes[:, FIRST], kind="stable"), start.copy(), boxes)
    return boxes, start


@njit(cache=True, nogil=True)
def _spread(nodes: Ints, order: NDArray[np.int64], at: NDArray[np.int64], boxes: Ints) -> None:
    """Write each node's box, in the given order, at every level that shows it; `at` is where a level writes next."""
    for i in order:
        for k in range(nodes[i, LOW], nodes[i, HIGH]):
            for column in range(4):
                boxes[at[k], column] = nodes[i, column]
            at[k] += 1


@njit(cache=True, nogil=True)
def box_iou(a: Floats, b: Floats, one: float) -> float:
    """IoU of two boxes whose ends are `one` pixel wide (0 or 1); an inverted box is empty, 0/0 is 0."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    inter = max(0.0, width) * max(0.0, height)
    area_a = max(0.0, a[2] - a[0] + one) * max(0.0, a[3] - a[1] + one)
    area_b = max(0.0, b[2] - b[0] + one) * max(0.0, b[3] - b[1] + one)
    union = area_a + area_b - inter
    return inter / union if union > 0 else 0.0


@njit(cache=True, nogil=True)
def best_ious(nodes: Ints, count: int, targets: Floats, scale: Floats, limit: Floats, one: float) -> Floats:
    """Best IoU at each level between its boxes, times `scale` Float[4] and cut at `limit` Float[4], and the targets."""
    best = np.zeros(count)
    for i in range(nodes.shape[0]):
        box = np.minimum(nodes[i, :4] * scale, limit)
        value = 0.0
        for j in range(targets.shape[0]):
            value = max(value, box_iou(box, targets[j], one))
        if value > 0:
            for k in range(nodes[i, LOW], nodes[i, HIGH]):
                best[k] = max(best[k], value)
    return best
