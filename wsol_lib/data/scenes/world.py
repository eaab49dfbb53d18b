"""What lives in the generated world: families, their telling parts, habitats, and the props that fill a landscape.

Animals of one family share body and colouring; one small telling part, of one of five kinds and five colours, tells the
species apart (and, beyond 100 classes, the coat's pattern). Sprites are lists of shapes in body lengths: the
body reaches from about -0.5 to 0.5 in x, faces right, and y grows downward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wsol_lib.data.scenes.drawing import PLAIN, SPOTTED, STRIPED, Colour, Floats, capsule, dim, ellipse, triangle

EACH = 50  # species a family
POSES = 3
HABITATS = ("marsh", "ocean", "snow", "forest", "meadow", "desert")
FAMILIES = ("heron", "deer", "fish", "beetle")
PART_COLOURS: dict[str, Colour] = {
    "red": (226, 44, 48),
    "blue": (44, 96, 236),
    "gold": (255, 206, 30),
    "violet": (166, 58, 206),
    "white": (250, 250, 246),
}
PATTERN_NAMES = ("", "spotted ", "striped ")
_INK: Colour = (34, 30, 36)
_DUSK = 1


@dataclass(frozen=True)
class Species:
    """One class: its family, its telling part and the habitat it belongs to.

    Attributes:
        name: such as "red-crested heron".
        family: index into FAMILIES.
        part: index into the family's five kinds of part.
        colour: a key of PART_COLOURS.
        pattern: PLAIN, SPOTTED or STRIPED coat.
        habitat: index into HABITATS.
    """

    name: str
    family: int
    part: int
    colour: str
    pattern: int
    habitat: int


@dataclass(frozen=True)
class Build:
    """How the animals of one family look in one world: colours and proportions.

    Attributes:
        coat, pale, dark: main, belly and wing colours.
        girth: thickness of the body, 1 in world 0.
        reach: length of neck, legs and fins, 1 in world 0.
    """

    coat: Colour
    pale: Colour
    dark: Colour
    girth: float = 1.0
    reach: float = 1.0


_BUILDS = (
    Build((150, 168, 186), (216, 222, 226), (98, 116, 140)),
    Build((184, 124, 76), (232, 200, 160), (132, 84, 52)),
    Build((64, 160, 160), (206, 232, 214), (34, 110, 122)),
    Build((104, 150, 66), (206, 232, 150), (72, 62, 50)),
)

# The five kinds of telling part of each family: adjective, form, anchor of the body, direction in degrees (0 right, 90
# down).
_PARTS = (
    (
        ("crested", "fan", "crown", 215),
        ("tailed", "fan", "tail", 165),
        ("collared", "band", "neck", 60),
        ("winged", "disc", "side", 0),
        ("billed", "horn", "mouth", 5),
    ),
    (
        ("horned", "fork", "crown", 265),
        ("tailed", "fan", "tail", 190),
        ("collared", "band", "neck", 50),
        ("saddled", "disc", "side", 0),
        ("nosed", "disc", "mouth", 0),
    ),
    (
        ("finned", "fan", "crown", 255),
        ("tailed", "fan", "tail", 180),
        ("belted", "band", "neck", 0),
        ("cheeked", "disc", "side", 0),
        ("snouted", "horn", "mouth", 0),
    ),
    (
        ("horned", "horn", "mouth", 300),
        ("tailed", "fan", "tail", 180),
        ("collared", "band", "neck", 0),
        ("backed", "disc", "side", 0),
        ("plumed", "fan", "crown", 280),
    ),
)

Body = tuple[list[Floats], dict[str, tuple[float, float]]]


def _eye(x: float, y: float, radius: float = 0.024) -> list[Floats]:
    white = ellipse(x, y, radius, radius, (250, 250, 244), bottom=(250, 250, 244), outline=False)
    return [white, ellipse(x + 0.006, y, 0.65 * radius, 0.65 * radius, _INK, outline=False)]


def _heron(build: Build, pose: int, pattern: int) -> Body:
    top = (-0.31 - 0.05 * pose) * build.reach
    bend = 0.25 + 0.03 * pose
    legs = [
        capsule(-0.05, 0.12, 0.026, -0.09 + 0.05 * pose, 0.5, 0.02, (196, 150, 70)),
        capsule(0.05, 0.12, 0.026, 0.06, 0.5, 0.02, (214, 164, 78)),
    ]
    body = [
        capsule(-0.18, 0.07, 0.09, -0.42, 0.15, 0.025, build.dark),
        ellipse(-0.03, 0.02, 0.27, 0.155 * build.girth, build.coat, -14, bottom=build.pale, pattern=pattern),
        capsule(0.15, -0.05, 0.085, bend, -0.2, 0.056, build.coat, bottom=build.pale),
        capsule(bend, -0.2, 0.056, 0.23, top + 0.04, 0.05, build.coat),
        triangle((0.28, top - 0.04, 0.28, top + 0.035, 0.5, top + 0.015), (236, 178, 66), 0.008),
        ellipse(0.25, top, 0.085, 0.072, build.pale, bottom=build.coat),
        ellipse(-0.1, 0.03, 0.2, 0.085, build.dark, -10, outline=False, pattern=pattern),
    ]
    anchors = {"crown": (0.21, top - 0.04), "tail": (-0.36, 0.13), "neck": (bend, -0.17), "side": (-0.07, 0.02)}
    return [*legs, *body, *_eye(0.275, top - 0.012)], {**anchors, "mouth": (0.31, top)}


def _deer(build: Build, pose: int, pattern: int) -> Body:
    head = (0.3 + 0.03 * pose, (-0.22 - 0.05 * pose) * build.reach)
    stride = 0.03 * (pose - 1)
    feet = ((-0.24 - stride, 0.8), (-0.12 + stride, 1.0), (0.06 - stride, 0.8), (0.17 + stride, 1.0))
    legs = [capsule(0.85 * x - 0.01, 0.05, 0.045, x, 0.46, 0.024, dim(build.coat, shade)) for x, shade in feet]
    x, y = head
    body = [
        ellipse(-0.33, -0.04, 0.06, 0.035, build.pale, -40),
        ellipse(-0.05, 0.0, 0.29, 0.15 * build.girth, build.coat, 0, bottom=build.pale, pattern=pattern),
        capsule(0.16, -0.03, 0.105, x - 0.04, y + 0.02, 0.062, build.coat, pattern=pattern),
        triangle((x - 0.06, y - 0.03, x - 0.01, y - 0.05, x - 0.1, y - 0.15), build.dark, 0.015),
        capsule(x, y, 0.07, x + 0.12, y + 0.05, 0.04, build.coat, bottom=build.pale),
        ellipse(x + 0.145, y + 0.04, 0.02, 0.018, _INK, outline=False),
    ]
    anchors = {"crown": (x - 0.01, y - 0.05), "tail": (-0.33, -0.04), "neck": (0.5 * (x + 0.14), 0.5 * y - 0.01)}
    return [*legs, *body, *_eye(x + 0.02, y - 0.02)], {**anchors, "side": (-0.1, -0.03), "mouth": (x + 0.145, y + 0.05)}


def _fish(build: Build, pose: int, pattern: int) -> Body:
    sway = 0.05 * (pose - 1)
    girth = 0.19 * build.girth
    fins = [
        triangle((-0.2, 0.0, -0.47, -0.17 + sway, -0.39, 0.02 + sway), build.dark, 0.02),
        triangle((-0.2, 0.0, -0.47, 0.18 + sway, -0.39, 0.0 + sway), build.dark, 0.02),
        triangle((0.12, -0.75 * girth, -0.18, -0.6 * girth, -0.12, -girth - 0.09 * build.reach), build.dark, 0.02),
        triangle((0.08, 0.8 * girth, -0.1, 0.7 * girth, -0.07, girth + 0.08 * build.reach), build.dark, 0.02),
    ]
    body = [
        ellipse(0.06, 0.0, 0.35, girth, build.coat, bottom=build.pale, pattern=pattern),
        triangle((0.1, 0.03, -0.06, 0.12 + sway, -0.04, 0.02), build.dark, 0.018, outline=False),
        capsule(0.36, 0.055, 0.009, 0.31, 0.06, 0.006, _INK, outline=False),
    ]
    anchors = {"crown": (-0.02, -0.85 * girth), "tail": (-0.3, 0.5 * sway), "neck": (0.12, 0.0), "side": (0.22, 0.03)}
    return [*fins, *body, *_eye(0.28, -0.05, 0.034)], {**anchors, "mouth": (0.4, 0.0)}


def _beetle(build: Build, pose: int, pattern: int) -> Body:
    shift = 0.03 * (pose - 1)
    legs = [
        limb
        for x in (-0.2, 0.0, 0.17)
        for limb in (
            capsule(x, 0.08, 0.028, x + 0.07 + shift, 0.15, 0.022, build.dark),
            capsule(x + 0.07 + shift, 0.15, 0.022, x + 0.03 + shift, 0.28 * build.reach, 0.012, build.dark),
        )
    ]
    feelers = [
        limb
        for dx, dy in ((0.0, 0.0), (0.06, 0.05))
        for limb in (
            capsule(0.34, -0.03, 0.013, 0.4 + dx, -0.12 + dy + shift, 0.011, build.dark),
            ellipse(0.41 + dx, -0.13 + dy + shift, 0.02, 0.02, build.dark),
        )
    ]
    shell = 0.21 * build.girth
    body = [
        *feelers,
        ellipse(0.29, 0.03, 0.115, 0.1, build.dark),
        ellipse(0.17, 0.02, 0.13, 0.8 * shell, build.dark),
        ellipse(-0.08, 0.0, 0.32, shell, build.coat, 3, pattern=pattern),
        capsule(-0.37, 0.06, 0.009, 0.2, -0.01, 0.009, build.dark, alpha=0.8, outline=False),
        ellipse(-0.12, -0.55 * shell, 0.17, 0.03, build.pale, -7, alpha=0.7, soft=0.05, outline=False),
    ]
    anchors = {"crown": (0.28, -0.06), "tail": (-0.38, 0.02), "neck": (0.2, -0.02), "side": (-0.08, -0.05)}
    return [*legs, *body, *_eye(0.34, 0.0, 0.026)], {**anchors, "mouth": (0.39, 0.03)}


_BODIES: tuple[Callable[[Build, int, int], Body], ...] = (_heron, _deer, _fish, _beetle)


def telling_part(form: str, x: float, y: float, degrees: float, size: float, colour: Colour) -> list[Floats]:
    """The shapes of a telling part of length `size` (body lengths) at (x, y), pointing to `degrees`.

    `form` is "fan" (three feathers), "fork" (two tines with tips), "horn" (a spike), "band" (across), or "disc".
    """
    if form == "disc":
        return [ellipse(x, y, 0.42 * size, 0.36 * size, colour, part=True)]
    if form == "band":
        return [ellipse(x, y, 0.24 * size, 0.52 * size, colour, degrees - 90 if degrees else 0, part=True)]
    spread = {"fan": (-32, 0, 32), "fork": (-30, 30), "horn": (0,)}[form]
    thin, thick = {"fan": (0.06, 0.15), "fork": (0.1, 0.12), "horn": (0.26, 0.05)}[form]
    tips = [(math.cos(math.radians(degrees + s)), math.sin(math.radians(degrees + s))) for s in spread]
    reach = 0.85 * size
    return [capsule(x, y, thin * size, x + reach * u, y + reach * v, thick * size, colour, part=True) for u, v in tips]


def animal(species: Species, build: Build, pose: int, part_size: float) -> Floats:
    """The sprite of a species in one of POSES poses: Float[m,SHAPE_COLUMNS], the eye on top."""
    shapes, anchors = _BODIES[species.family](build, pose, species.pattern)
    _, form, anchor, degrees = _PARTS[species.family][species.part]
    part = telling_part(form, *anchors[anchor], degrees, part_size, PART_COLOURS[species.colour])
    return np.array(shapes[:-2] + part + shapes[-2:])  # an eye is two shapes, the last of every body


@lru_cache(maxsize=32)
def all_species(world: int = 0, families: int = len(FAMILIES)) -> tuple[Species, ...]:
    """All species of a world, EACH a family; class k is of family k mod `families`. Worlds deal the parts anew."""
    orders = [list(range(EACH))] * families
    if world:
        orders = _uniforms(world, 0, (len(FAMILIES), EACH)).argsort(axis=1, kind="stable").tolist()
    return tuple(_species(k % families, orders[k % families][k // families]) for k in range(EACH * families))


def _uniforms(world: int, stream: int, shape: tuple[int, ...]) -> Floats:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([world, stream, 77]))).random(shape)


def _species(family: int, order: int) -> Species:
    colour = list(PART_COLOURS)[order % 5]
    part = (order % 5 + order // 5) % 5
    pattern = (PLAIN if order < 25 else SPOTTED) if order % 2 == 0 or order < 25 else STRIPED
    name = f"{PATTERN_NAMES[pattern]}{colour}-{_PARTS[family][part][0]} {FAMILIES[family]}"
    return Species(name, family, part, colour, pattern, (3 * family + order) % len(HABITATS))


@lru_cache(maxsize=32)
def builds(world: int = 0) -> tuple[Build, ...]:
    """How the families look in a world: the printed palette in world 0, other colours and proportions elsewhere."""
    if world == 0:
        return _BUILDS
    return tuple(_rebuild(u) for u in _uniforms(world, 1, (len(FAMILIES), 5)))


def _rebuild(u: Floats) -> Build:
    coat = (60.0 + 130.0 * u[0], 60.0 + 130.0 * u[1], 60.0 + 130.0 * u[2])
    pale = (0.4 * coat[0] + 142.0, 0.4 * coat[1] + 142.0, 0.4 * coat[2] + 142.0)
    return Build(coat, pale, dim(coat, 0.6), 0.8 + 0.4 * u[3], 0.85 + 0.3 * u[4])


# Palettes by day and at dusk: sky top, sky at the horizon, glow, far hills, near hills, ground near the horizon, ground
# at the lower edge. Reliefs: see drawing.RELIEF_COLUMNS.
_PALETTES = (
    (
        (
            (126, 172, 190),
            (222, 228, 204),
            (255, 250, 222),
            (116, 150, 132),
            (88, 124, 88),
            (126, 160, 150),
            (72, 112, 112),
        ),
        (
            (98, 92, 152),
            (250, 180, 150),
            (255, 226, 176),
            (112, 104, 130),
            (84, 92, 96),
            (204, 152, 148),
            (96, 88, 128),
        ),
    ),
    (
        (
            (52, 150, 206),
            (28, 108, 178),
            (196, 240, 246),
            (30, 96, 158),
            (40, 106, 142),
            (120, 164, 160),
            (172, 178, 146),
        ),
        ((34, 92, 150), (18, 56, 116), (150, 204, 226), (20, 52, 104), (26, 62, 100), (70, 104, 124), (96, 114, 116)),
    ),
    (
        (
            (104, 164, 220),
            (214, 232, 244),
            (255, 255, 250),
            (142, 172, 206),
            (190, 210, 230),
            (228, 238, 246),
            (196, 214, 234),
        ),
        (
            (70, 80, 142),
            (238, 182, 190),
            (255, 226, 206),
            (116, 118, 168),
            (156, 152, 194),
            (214, 196, 218),
            (150, 156, 202),
        ),
    ),
    (
        (
            (120, 172, 146),
            (206, 226, 176),
            (250, 252, 214),
            (70, 118, 84),
            (60, 108, 66),
            (112, 142, 68),
            (76, 104, 52),
        ),
        ((92, 118, 118), (236, 206, 134), (255, 234, 164), (84, 112, 86), (60, 88, 64), (122, 112, 58), (80, 80, 48)),
    ),
    (
        (
            (92, 168, 232),
            (206, 232, 240),
            (255, 252, 224),
            (134, 178, 140),
            (112, 170, 84),
            (148, 192, 78),
            (92, 146, 56),
        ),
        (
            (120, 118, 188),
            (252, 196, 150),
            (255, 238, 190),
            (126, 130, 134),
            (132, 146, 84),
            (190, 176, 84),
            (128, 132, 64),
        ),
    ),
    (
        (
            (88, 170, 214),
            (250, 226, 182),
            (255, 250, 224),
            (206, 150, 112),
            (222, 168, 108),
            (236, 194, 132),
            (208, 154, 94),
        ),
        ((92, 70, 128), (250, 150, 108), (255, 214, 150), (150, 88, 92), (186, 108, 84), (216, 142, 98), (160, 96, 76)),
    ),
)
PALETTES: Floats = np.array(_PALETTES, dtype=np.float64)  # Float[6,2,7,3]
RELIEFS: Floats = np.array(
    [
        (0.10, 0.03, 0.0, 4.0, 34.0, 0.20, 0.0),
        (0.12, 0.10, 0.2, 7.0, 16.0, 0.16, 0.34),
        (0.30, 0.08, 1.0, 5.0, 14.0, 0.07, 0.0),
        (0.22, 0.08, 0.3, 11.0, 22.0, 0.30, 0.16),
        (0.16, 0.09, 0.0, 9.0, 26.0, 0.20, 0.0),
        (0.16, 0.08, 0.35, 4.0, 26.0, 0.14, 0.0),
    ]
)  # Float[6,RELIEF_COLUMNS]
LIGHTS: Floats = np.array([[(1.04, 1.03, 1.0), (0.98, 0.88, 0.9)]] * 6)  # Float[6,2,3], multiplies sprites
LIGHTS[1] = [(0.9, 1.0, 1.02), (0.74, 0.88, 1.0)]
LIGHTS[3, _DUSK] = (0.96, 0.9, 0.76)


# Tint of the foreground that hides objects: leaves, and trunk or pillar.
COVERS: Floats = np.array(
    [
        [(0.44, 0.56, 0.3), (0.4, 0.36, 0.28)],
        [(0.2, 0.48, 0.44), (0.5, 0.4, 0.44)],
        [(0.86, 0.91, 0.97), (0.46, 0.42, 0.42)],
        [(0.26, 0.4, 0.2), (0.34, 0.26, 0.2)],
        [(0.4, 0.6, 0.22), (0.48, 0.36, 0.24)],
        [(0.78, 0.64, 0.36), (0.7, 0.5, 0.4)],
    ]
)  # Float[6,2,3]

PLACES = ("a marsh", "the ocean", "the snow", "a forest", "a meadow", "the desert")
VERBS = (("standing", "wading", "resting"), ("standing", "grazing", "waiting"), ("swimming", "drifting", "gliding"),
         ("crawling", "resting", "walking"))  # fmt: skip
