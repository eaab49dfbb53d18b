"""The props of a landscape: what grows, lies and floats there. Sprites stand on y = 0 and are about one unit high."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from wsol_lib.data.scenes.drawing import Colour, Floats, capsule, dim, ellipse, triangle


def _round_tree(leaf: Colour, trunk: Colour) -> list[Floats]:
    crowns = ((-0.2, -0.6, 0.2), (0.2, -0.58, 0.19), (0.0, -0.78, 0.22), (0.02, -0.56, 0.22))
    return [
        capsule(0.0, 0.0, 0.07, 0.0, -0.5, 0.05, trunk),
        *(ellipse(x, y, r, 0.9 * r, leaf) for x, y, r in crowns),
    ]


def _pine(leaf: Colour, top: Colour) -> list[Floats]:
    tiers = ((-0.1, -0.46, 0.3), (-0.34, -0.74, 0.24), (-0.58, -1.0, 0.17))
    trunk = capsule(0.0, 0.0, 0.05, 0.0, -0.2, 0.05, (96, 70, 52))
    return [
        trunk, *(triangle((-w, low, w, low, 0.0, high), top, 0.01, bottom=leaf) for low, high, w in tiers)
    ]  # fmt: skip


def _trunk(bark: Colour) -> list[Floats]:
    return [
        capsule(0.0, 0.0, 0.16, 0.0, -1.6, 0.1, bark, bottom=bark),
        capsule(-0.03, -0.1, 0.03, -0.02, -1.5, 0.02, dim(bark, 1.25), alpha=0.5, outline=False),
        triangle((-0.24, 0.02, 0.24, 0.02, 0.0, -0.35), bark, 0.01, outline=False),
    ]


def _cactus(leaf: Colour) -> list[Floats]:
    return [
        capsule(0.0, 0.0, 0.1, 0.0, -0.9, 0.09, leaf),
        capsule(0.0, -0.35, 0.05, 0.24, -0.42, 0.055, leaf),
        capsule(0.24, -0.42, 0.055, 0.25, -0.68, 0.055, leaf),
        capsule(0.0, -0.5, 0.05, -0.22, -0.54, 0.05, leaf),
        capsule(-0.22, -0.54, 0.05, -0.23, -0.75, 0.05, leaf),
    ]


def _rock(stone: Colour) -> list[Floats]:
    return [
        triangle((-0.45, 0.0, 0.1, 0.0, -0.15, -0.4), stone, 0.06),
        triangle((-0.1, 0.02, 0.46, 0.02, 0.2, -0.28), dim(stone, 0.88), 0.06),
    ]


def _blades(leaf: Colour, heights: Sequence[float], width: float = 0.035) -> list[Floats]:
    middle = (len(heights) - 1) / 2
    tips = [(0.09 * (k - middle), 0.2 * (k - middle), h) for k, h in enumerate(heights)]
    return [capsule(x, 0.0, width, tip, -h, 0.008, leaf, outline=False) for x, tip, h in tips]


def _reeds() -> list[Floats]:
    heads = [capsule(x, -h, 0.04, x, -h - 0.16, 0.035, (112, 72, 44)) for x, h in ((-0.12, 0.75), (0.1, 0.6))]
    return [*_blades((104, 134, 70), (0.5, 0.9, 0.8, 1.0, 0.6)), *heads]


def _seaweed(leaf: Colour) -> list[Floats]:
    curve = ((0.0, 0.0), (0.08, -0.25), (-0.05, -0.5), (0.07, -0.75), (0.0, -1.0))
    return [
        capsule(x0 + dx, y0 * h, 0.05, x1 + dx, y1 * h, 0.04, leaf, bottom=leaf, outline=False)
        for dx, h in ((-0.14, 0.7), (0.0, 1.0), (0.16, 0.8))
        for (x0, y0), (x1, y1) in pairwise(curve)
    ]


def _coral(tint: Colour) -> list[Floats]:
    arms = ((0.0, 0.0, 0.0, -0.5), (0.0, -0.2, 0.28, -0.5), (0.0, -0.25, -0.26, -0.6), (0.0, -0.45, 0.1, -0.8))
    return [capsule(x0, y0, 0.08, x1, y1, 0.055, tint, bottom=tint) for x0, y0, x1, y1 in arms]


def _flower(petal: Colour) -> list[Floats]:
    stem = capsule(0.0, 0.0, 0.03, 0.03, -0.6, 0.025, (78, 128, 56), outline=False)
    ring = ((0.14, 0.0), (-0.14, 0.0), (0.0, 0.14), (0.0, -0.14))
    petals = [ellipse(0.03 + x, -0.7 + y, 0.13, 0.13, petal, outline=False) for x, y in ring]
    return [stem, *petals, ellipse(0.03, -0.7, 0.09, 0.09, (250, 214, 90), outline=False)]


def _mushroom(cap: Colour) -> list[Floats]:
    return [
        capsule(0.0, 0.0, 0.12, 0.0, -0.4, 0.09, (236, 222, 200)),
        ellipse(0.0, -0.5, 0.34, 0.2, cap),
        ellipse(-0.1, -0.56, 0.06, 0.04, (250, 244, 230), outline=False),
        ellipse(0.14, -0.5, 0.05, 0.04, (250, 244, 230), outline=False),
    ]


def _balloon(skin: Colour) -> list[Floats]:
    return [
        capsule(0.0, 0.0, 0.012, 0.02, -0.5, 0.012, (90, 84, 84), outline=False),
        ellipse(0.02, -0.74, 0.2, 0.26, skin),
        ellipse(-0.05, -0.84, 0.05, 0.08, (255, 255, 255), 20, alpha=0.6, soft=0.04, outline=False),
    ]


def _bush() -> list[Floats]:
    """A leafy hedge in grey, to be tinted: its top is y = -1, it spans x from -0.5 to 0.5 and goes down to y = 1.2."""
    grey, low = (250.0, 250.0, 250.0), (160.0, 160.0, 160.0)
    tops = (-0.38, -0.23, -0.06, 0.12, 0.27, 0.4)
    blades = [capsule(x, -0.7, 0.05, x + s * 0.08, -1.0, 0.012, grey, bottom=low) for x in tops for s in (-1, 1)]
    rows = ((-0.66, 0.0), (-0.3, 0.06), (0.05, -0.03), (0.4, 0.05), (0.75, 0.0))
    mounds = [
        ellipse(0.92 * x + shift, y + 0.06 * (k % 2), 0.13, 0.27, dim(grey, 1 - 0.06 * row), bottom=low)
        for row, (y, shift) in enumerate(rows)
        for k, x in enumerate(tops)
    ]
    return [*blades, *mounds]


def _post() -> list[Floats]:
    """A trunk in grey, to be tinted: one unit wide around x = 0, three units up and down."""
    grey, low = (240.0, 240.0, 240.0), (200.0, 200.0, 200.0)
    bark = [
        capsule(x, -2.4, 0.04, x + 0.04, 2.4, 0.05, (150.0, 150.0, 150.0), alpha=0.6, outline=False)
        for x in (-0.2, 0.1)
    ]
    return [capsule(0.0, -3.0, 0.46, 0.0, 3.0, 0.5, grey, bottom=low), *bark]


def _pool() -> list[Floats]:
    """Still water in grey, to be tinted: an ellipse of half-width 1 around the origin."""
    rings = [
        ellipse(x, y, 0.34, 0.012, (255, 255, 255), alpha=0.5, outline=False) for x, y in ((-0.3, 0.2), (0.35, -0.1))
    ]
    return [ellipse(0.0, 0.0, 1.0, 0.5, (190, 190, 190), bottom=(250, 250, 250), outline=False), *rings]


def _shadow() -> list[Floats]:
    return [ellipse(0.0, 0.0, 0.36, 0.045, (20, 24, 34), bottom=(20, 24, 34), alpha=0.34, soft=0.09, outline=False)]


PROPS: dict[str, list[Floats]] = {
    "reeds": _reeds(),
    "willow": _round_tree((128, 152, 96), (104, 90, 70)),
    "sedge": _blades((122, 148, 84), (0.5, 0.8, 0.95, 0.7)),
    "kelp": _seaweed((44, 122, 92)),
    "coral": _coral((206, 108, 118)),
    "sponge": _coral((214, 156, 96)),
    "pine": _pine((52, 98, 84), (86, 136, 112)),
    "snowy pine": _pine((120, 156, 164), (246, 250, 252)),
    "ice": _rock((190, 216, 236)),
    "trunk": _trunk((96, 74, 56)),
    "fern": _blades((74, 122, 56), (0.4, 0.6, 0.75, 0.7, 0.45), 0.05),
    "fir": _pine((34, 76, 50), (62, 112, 66)),
    "oak": _round_tree((92, 148, 62), (112, 84, 58)),
    "poppy": _flower((230, 92, 78)),
    "daisy": _flower((250, 248, 240)),
    "grass": _blades((110, 164, 62), (0.45, 0.7, 0.8, 0.6)),
    "cactus": _cactus((92, 142, 84)),
    "rock": _rock((176, 124, 96)),
    "dry grass": _blades((206, 178, 104), (0.5, 0.8, 0.7)),
    "pebble": _rock((150, 150, 156)),
    "mushroom": _mushroom((206, 66, 56)),
    "blue mushroom": _mushroom((70, 98, 190)),
    "violet balloon": _balloon((162, 74, 196)),
    "gold balloon": _balloon((246, 196, 56)),
    "red balloon": _balloon((220, 60, 60)),
    "white flower": _flower((250, 246, 244)),
    "bush": _bush(),
    "post": _post(),
    "pool": _pool(),
    "shadow": _shadow(),
}
PROP_NUMBER = {name: number for number, name in enumerate(PROPS)}
# Three props of each habitat: tall ones near the horizon, low ones on the ground.
TALL = (
    ("reeds", "willow", "reeds"),
    ("kelp", "coral", "sponge"),
    ("pine", "snowy pine", "snowy pine"),
    ("trunk", "fir", "fir"),
    ("oak", "oak", "grass"),
    ("cactus", "rock", "cactus"),
)
LOW = (
    ("sedge", "reeds", "sedge"),
    ("coral", "kelp", "pebble"),
    ("ice", "pebble", "ice"),
    ("fern", "fern", "pebble"),
    ("poppy", "grass", "daisy"),
    ("dry grass", "rock", "dry grass"),
)
# What clutter adds.
DISTRACTORS = (
    "mushroom",
    "blue mushroom",
    "violet balloon",
    "gold balloon",
    "red balloon",
    "white flower",
)
