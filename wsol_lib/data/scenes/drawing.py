"""Draws flat shapes without jagged edges: signed distances in, uint8 pictures and object numbers out.

Why signed distances: a shape described by its distance function can be drawn at any size, with edges that fade over
one pixel, so that a 64 px and a 224 px picture show the same scene. Only `+ - * / sqrt` are used on pixels and colours
are mixed in integers, so that the bytes are the same on every machine. Lengths are in units of the picture's side,
y grows downward, and a pixel is judged at its centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Colour = tuple[float, float, float]

ELLIPSE, CAPSULE, TRIANGLE = 0, 1, 2
PLAIN, SPOTTED, STRIPED = 0, 1, 2
# Columns of a shape: kind, geometry (7), top colour (3), bottom colour (3), alpha, softness, outlined, part, pattern,
# bounding box (4).
_TOP, _BOTTOM, _ALPHA, _SOFT, _OUTLINE, _PART, _PATTERN, _BOX = 8, 11, 14, 15, 16, 17, 18, 19
SHAPE_COLUMNS = 23
# Columns of a placement: sprite (-1: nothing), centre (2), matrix by rows (4), scale, tint (3), alpha, object number.
PLACE_COLUMNS = 13
_OUTLINE_WIDTH = 0.016
PART_BIT = 16

# Rows of a habitat's palette.
SKY_TOP, SKY_LOW, GLOW, FAR, NEAR, GROUND_TOP, GROUND_LOW = range(7)
# Columns of a habitat's relief: height of far and near hills, how jagged they are (0 round, 1 peaks), ground texture's
# cells across and down and its strength, strength of light shafts.
RELIEF_COLUMNS = 7


def dim(colour: Colour, factor: float) -> Colour:
    """A darker (factor below 1) or lighter shade of a colour."""
    red, green, blue = colour
    return factor * red, factor * green, factor * blue


def shape(
    kind: int,
    geometry: Sequence[float],
    colour: Colour,
    bottom: Colour | None = None,
    *,
    alpha: float = 1.0,
    soft: float = 0.0,
    outline: bool = True,
    part: bool = False,
    pattern: int = PLAIN,
) -> Floats:
    """One shape as a row of numbers, Float[SHAPE_COLUMNS]; colours fade from `colour` at its top to `bottom`.

    Args:
        kind: ELLIPSE (cx, cy, rx, ry, cos, sin), CAPSULE (x0, y0, r0, x1, y1, r1) with round ends of two radii, or
            TRIANGLE (x0, y0, x1, y1, x2, y2, rounding).
        geometry: the numbers that `kind` names, in the sprite's own units.
        colour: RGB in 0..255; `bottom` is a darker shade of it unless given.
        bottom: RGB at the lower end.
        alpha: opacity, 0 to 1.
        soft: width of the fading edge, in the sprite's own units; 0 fades over one pixel.
        outline: whether a dark line surrounds the sprite's silhouette here.
        part: whether this is the telling part.
        pattern: PLAIN, SPOTTED or STRIPED.
    """
    row = np.zeros(SHAPE_COLUMNS)
    row[0] = kind
    row[1 : 1 + len(geometry)] = geometry
    row[_TOP:_BOTTOM] = colour
    row[_BOTTOM:_ALPHA] = bottom or dim(colour, 0.72)
    row[_ALPHA:_BOX] = alpha, soft, outline, part, pattern
    row[_BOX:] = _bounds(kind, geometry, soft)
    return np.round(row, 6)


def ellipse(cx: float, cy: float, rx: float, ry: float, colour: Colour, degrees: float = 0.0, **style: Any) -> Floats:
    """An ellipse around (cx, cy), turned clockwise by `degrees`; `style` as in `shape`."""
    turn = math.radians(degrees)
    return shape(ELLIPSE, (cx, cy, rx, ry, math.cos(turn), math.sin(turn)), colour, **style)


def capsule(x0: float, y0: float, r0: float, x1: float, y1: float, r1: float, colour: Colour, **style: Any) -> Floats:
    """A limb from a disc of radius r0 to a disc of radius r1; `style` as in `shape`."""
    return shape(CAPSULE, (x0, y0, r0, x1, y1, r1), colour, **style)


def triangle(points: Sequence[float], colour: Colour, rounding: float = 0.0, **style: Any) -> Floats:
    """A triangle (x0, y0, x1, y1, x2, y2) whose corners are rounded; `style` as in `shape`."""
    return shape(TRIANGLE, (*points, rounding), colour, **style)


def _bounds(kind: int, geometry: Sequence[float], soft: float) -> tuple[float, float, float, float]:
    if kind == ELLIPSE:
        cx, cy, rx, ry, cos, sin = geometry
        wide, high = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        xs, ys, margin = [cx - wide, cx + wide], [cy - high, cy + high], soft
    elif kind == CAPSULE:
        x0, y0, r0, x1, y1, r1 = geometry
        xs, ys, margin = [x0 - r0, x0 + r0, x1 - r1, x1 + r1], [y0 - r0, y0 + r0, y1 - r1, y1 + r1], soft
    else:
        xs, ys, margin = list(geometry[0:6:2]), list(geometry[1:6:2]), soft + geometry[6]
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


@njit(cache=True, nogil=True)
def _hash(a: int, b: int, seed: int) -> float:
    """A number in [0,1) that looks random, for each pair of integers (32-bit mixing in 64-bit integers)."""
    h = (int(a) * 374761393 + int(b) * 668265263 + int(seed) * 2246822519) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65536.0


@njit(cache=True, nogil=True)
def _noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [0,1): random values on the integer grid, blended by the cubic 3t^2 - 2t^3."""
    ix, iy = math.floor(x), math.floor(y)
    fx, fy = x - ix, y - iy
    sx, sy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    a, b = _hash(ix, iy, seed), _hash(ix + 1, iy, seed)
    c, d = _hash(ix, iy + 1, seed), _hash(ix + 1, iy + 1, seed)
    low, high = a + (b - a) * sx, c + (d - c) * sx
    return low + (high - low) * sy


@njit(cache=True, nogil=True)
def _clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)


@njit(cache=True, nogil=True)
def _ellipse_distance(g: Floats, x: float, y: float) -> float:
    dx, dy = x - g[0], y - g[1]
    u, v = (dx * g[4] + dy * g[5]) / g[2], (dy * g[4] - dx * g[5]) / g[3]
    k0 = math.sqrt(u * u + v * v)
    u, v = u / g[2], v / g[3]
    k1 = math.sqrt(u * u + v * v)
    return k0 * (k0 - 1.0) / k1 if k1 > 1e-9 else -min(g[2], g[3])


@njit(cache=True, nogil=True)
def _capsule_distance(g: Floats, x: float, y: float) -> float:
    ax, ay = g[3] - g[0], g[4] - g[1]
    t = _clamp(((x - g[0]) * ax + (y - g[1]) * ay) / (ax * ax + ay * ay + 1e-12))
    dx, dy = x - g[0] - t * ax, y - g[1] - t * ay
    return math.sqrt(dx * dx + dy * dy) - (g[2] + (g[5] - g[2]) * t)


@njit(cache=True, nogil=True)
def _triangle_distance(g: Floats, x: float, y: float) -> float:
    turn = (g[2] - g[0]) * (g[5] - g[1]) - (g[3] - g[1]) * (g[4] - g[0])
    nearest, inside = 1e9, True
    for i in range(3):
        j = (i + 1) % 3
        ex, ey, px, py = g[2 * j] - g[2 * i], g[2 * j + 1] - g[2 * i + 1], x - g[2 * i], y - g[2 * i + 1]
        t = _clamp((px * ex + py * ey) / (ex * ex + ey * ey + 1e-12))
        dx, dy = px - t * ex, py - t * ey
        nearest = min(nearest, dx * dx + dy * dy)
        inside = inside and (ex * py - ey * px) * turn >= 0.0
    root = math.sqrt(nearest)
    return (-root if inside else root) - g[6]


@njit(cache=True, nogil=True)
def _distance(row: Floats, x: float, y: float) -> float:
    """Signed distance from (x, y) to the shape's edge, negative inside."""
    if row[0] == ELLIPSE:
        return _ellipse_distance(row[1:8], x, y)
    if row[0] == CAPSULE:
        return _capsule_distance(row[1:8], x, y)
    return _triangle_distance(row[1:8], x, y)


@njit(cache=True, nogil=True)
def _pattern_shade(pattern: float, x: float, y: float) -> float:
    """How much darker a patterned coat is at (x, y): a factor in [0.5, 1]."""
    if pattern == SPOTTED:
        row = math.floor(y / 0.085)
        u, v = x / 0.1 + 0.5 * (row % 2.0), y / 0.085
        u, v = u - math.floor(u) - 0.5, v - row - 0.5
        return 1.0 - 0.5 * _clamp((0.12 - (u * u + v * v)) / 0.06)
    if pattern == STRIPED:
        u = x / 0.11 + 0.25 * y / 0.11
        return 1.0 - 0.5 * _clamp((0.27 - abs(u - math.floor(u) - 0.5)) / 0.1)
    return 1.0


@njit(cache=True, nogil=True)
def _mix(pixel: Bytes, red: float, green: float, blue: float, cover: int) -> None:
    """Blend a colour into a uint8 pixel with integer opacity 0..255."""
    keep = 255 - cover
    pixel[0] = (int(pixel[0]) * keep + int(min(red, 255.0) + 0.5) * cover + 127) // 255
    pixel[1] = (int(pixel[1]) * keep + int(min(green, 255.0) + 0.5) * cover + 127) // 255
    pixel[2] = (int(pixel[2]) * keep + int(min(blue, 255.0) + 0.5) * cover + 127) // 255


@njit(cache=True, nogil=True)
def _window(row: Floats, place: Floats, size: int, grow: float) -> tuple[int, int, int, int]:
    """The pixels that a placed shape can touch: (left, top, right, bottom), half-open, clipped to the picture."""
    cx, cy = 0.5 * (row[_BOX] + row[_BOX + 2]), 0.5 * (row[_BOX + 1] + row[_BOX + 3])
    rx, ry = 0.5 * (row[_BOX + 2] - row[_BOX]) + grow, 0.5 * (row[_BOX + 3] - row[_BOX + 1]) + grow
    x, y = place[1] + place[3] * cx + place[4] * cy, place[2] + place[5] * cx + place[6] * cy
    wide, high = abs(place[3]) * rx + abs(place[4]) * ry, abs(place[5]) * rx + abs(place[6]) * ry
    left, top = math.floor((x - wide) * size) - 1, math.floor((y - high) * size) - 1
    right, bottom = math.ceil((x + wide) * size) + 1, math.ceil((y + high) * size) + 1
    return max(left, 0), max(top, 0), min(right, size), min(bottom, size)


@njit(cache=True, nogil=True)
def _draw_shape(row: Floats, place: Floats, outline: bool, picture: Bytes, owner: Bytes) -> None:
    """Draw one shape of a placed sprite; with `outline`, its silhouette grown by a line in a dark shade."""
    size = picture.shape[0]
    grow = _OUTLINE_WIDTH if outline else 0.0
    left, top, right, bottom = _window(row, place, size, grow)
    det = place[3] * place[6] - place[4] * place[5]
    per_pixel = place[7] * size / (1.0 + row[_SOFT] * place[7] * size)
    height = row[_BOX + 3] - row[_BOX + 1]
    opacity = row[_ALPHA] * place[11] * 255.0
    mark = int(place[12]) + (PART_BIT if row[_PART] > 0 and not outline else 0)
    for j in range(top, bottom):
        dy = (j + 0.5) / size - place[2]
        for i in range(left, right):
            dx = (i + 0.5) / size - place[1]
            x, y = (place[6] * dx - place[4] * dy) / det, (place[3] * dy - place[5] * dx) / det
            cover = int(_clamp(0.5 - (_distance(row, x, y) - grow) * per_pixel) * opacity + 0.5)
            if cover == 0:
                continue
            t = _clamp((y - row[_BOX + 1]) / height)
            shade = 0.3 if outline else _pattern_shade(row[_PATTERN], x, y)
            red = (row[_TOP] + (row[_BOTTOM] - row[_TOP]) * t) * shade * place[8]
            green = (row[_TOP + 1] + (row[_BOTTOM + 1] - row[_TOP + 1]) * t) * shade * place[9]
            blue = (row[_TOP + 2] + (row[_BOTTOM + 2] - row[_TOP + 2]) * t) * shade * place[10]
            _mix(picture[j, i], red, green, blue, cover)
            if cover >= 128:
                owner[j, i] = mark


@njit(cache=True, nogil=True)
def _draw_sprite(shapes: Floats, place: Floats, picture: Bytes, owner: Bytes) -> None:
    """Draw a sprite: first the outline of the whole silhouette, then its shapes in order."""
    for k in range(len(shapes)):
        if shapes[k, _OUTLINE] > 0:
            _draw_shape(shapes[k], place, True, picture, owner)
    for k in range(len(shapes)):
        _draw_shape(shapes[k], place, False, picture, owner)


@njit(cache=True, nogil=True)
def _ridge(x: float, jagged: float, seed: int) -> float:
    """Height of a skyline at x, in about [0,1]; `jagged` goes from rolling hills (0) to peaks (1)."""
    round_hill = 0.75 * _noise(x, 0.5, seed) + 0.25 * _noise(2.7 * x, 0.5, seed + 1)
    peak = 1.0 - 2.0 * abs(_noise(1.3 * x, 0.5, seed + 2) - 0.5) + 0.3 * (_noise(6.0 * x, 0.5, seed + 3) - 0.5)
    return round_hill + (peak - round_hill) * jagged


@njit(cache=True, nogil=True)
def _sky_light(x: float, y: float, sun_x: float, sun_y: float, shafts: float, seed: int, size: int) -> float:
    """How much of the glow's colour the sky takes at (x, y): halo, sun and, in the open, clouds; in [0,1]."""
    square = (x - sun_x) * (x - sun_x) + (y - sun_y) * (y - sun_y)
    sun = 0.7 * _clamp((0.07 - math.sqrt(square)) * size)
    cloud = 0.45 * _clamp(2.2 * _noise(3.0 * x, 9.0 * y, seed + 11) - 1.25)
    return _clamp(0.75 / (1.0 + 28.0 * square) + (1.0 - shafts) * (sun + cloud))


@njit(cache=True, nogil=True)
def _grain(x: float, y: float, across: float, down: float, seed: int) -> float:
    """Two octaves of ground texture around 0."""
    coarse = _noise(across * x, down * y, seed + 17) - 0.5
    return coarse + 0.6 * (_noise(2.3 * across * x, 2.3 * down * y, seed + 19) - 0.5)


@njit(cache=True, nogil=True)
def _backdrop(palette: Floats, relief: Floats, sky: Floats, picture: Bytes) -> None:
    """Sky with a glow, two ranges of hills in mist, and textured ground, fading gently towards the corners."""
    size, seed = picture.shape[0], int(sky[3])
    horizon, sun_x, sun_y = sky[0], sky[1], sky[2]
    for i in range(size):
        x = (i + 0.5) / size
        far = horizon - relief[0] * _ridge(2.5 * x, relief[2], seed)
        near = horizon + 0.04 - relief[1] * _ridge(3.5 * x, 0.5 * relief[2], seed + 7)
        for j in range(size):
            y = (j + 0.5) / size
            light = _sky_light(x, y, sun_x, sun_y, relief[6], seed, size)
            shaft = relief[6] * (1.0 - y) * _clamp(2.0 * _noise(9.0 * (x + 0.45 * y), 0.5, seed + 13) - 0.9)
            depth = _clamp((y - near) / (1.02 - near))
            in_far, in_near = _clamp((y - far) * size + 0.5), _clamp((y - near) * size + 0.5)
            mist = 0.45 * _clamp(1.0 - (near - y) / (0.35 * relief[0] + 0.02))
            rough = 1.0 + relief[5] * _grain(x, y, relief[3], relief[4], seed) * (0.35 + depth)
            dark = 1.0 - 0.3 * ((x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5))
            for c in range(3):
                tone = palette[:, c]
                above = tone[SKY_TOP] + (tone[SKY_LOW] - tone[SKY_TOP]) * _clamp(y / (horizon + 0.05))
                above += (tone[GLOW] - above) * light
                hill = tone[FAR] + (tone[SKY_LOW] - tone[FAR]) * mist
                ground = tone[NEAR] + (tone[GROUND_TOP] - tone[NEAR]) * _clamp(4.0 * depth)
                ground = (ground + (tone[GROUND_LOW] - ground) * depth) * rough
                value = above + (hill - above) * in_far
                value += (ground - value) * in_near
                value += (tone[GLOW] - value) * shaft
                picture[j, i, c] = int(min(max(value * dark, 0.0), 255.0) + 0.5)


@njit(cache=True, nogil=True)
def draw(
    palette: Floats,
    relief: Floats,
    sky: Floats,
    places: Floats,
    shapes: Floats,
    starts: NDArray[np.int64],
    picture: Bytes,
    owner: Bytes,
) -> None:
    """Draw one scene into `picture` UInt8[S,S,3], and into `owner` UInt8[S,S] which object each pixel shows.

    Args:
        palette: Float[7,3], colours in 0..255 (rows SKY_TOP to GROUND_LOW).
        relief: Float[RELIEF_COLUMNS].
        sky: Float[4]: horizon, sun x, sun y, seed of the textures.
        places: Float[P,PLACE_COLUMNS], drawn in order.
        shapes: Float[M,SHAPE_COLUMNS], the shapes of all sprites, one sprite after the other.
        starts: Int[T+1]; sprite t is `shapes[starts[t]:starts[t + 1]]`.
        picture, owner: written; `owner` is 0 for no object, else the object's number, plus PART_BIT on its telling
            part. What covers a pixel by half or more owns it.
    """
    owner[:] = 0
    _backdrop(palette, relief, sky, picture)
    for p in range(len(places)):
        sprite = int(places[p, 0])
        if sprite >= 0:
            _draw_sprite(shapes[starts[sprite] : starts[sprite + 1]], places[p], picture, owner)
