"""Decides what every picture shows, from seeded numbers alone.

Each aspect (label, habitat, pose, ...) draws from its own stream, one row a picture. So picture i depends on (seed, i)
only, however many are made, and turning one knob leaves every other aspect as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsol_lib.data.scenes import world as earth
from wsol_lib.data.scenes.drawing import PLACE_COLUMNS, SKY_LOW, SKY_TOP, Floats
from wsol_lib.data.scenes.props import DISTRACTORS, LOW, PROP_NUMBER, TALL
from wsol_lib.data.scenes.world import HABITATS, POSES, Species

Ints = NDArray[np.int64]
Habitats = Literal["own", "shuffled", "swapped"]
MAX_INSTANCES = 4
MAX_WORLDS = 100
_STREAMS = ("label", "habitat", "backdrop", "pose", "tall", "low", "clutter", "occlusion", "reflection", "caption")
# Half width and half height of a family's body, in body lengths.
_HALF = np.array([(0.46, 0.49), (0.43, 0.47), (0.45, 0.26), (0.44, 0.28)])
_REACH = 0.06  # how far a telling part may stand out, in body lengths
_FLOATS = np.array([False, False, True, False])
_HORIZON_SHIFT = np.array([0.0, 0.3, 0.04, 0.0, 0.02, 0.04])
_SHARE = (1.0, 0.44, 0.36, 0.32)  # of the single object's area, when there are 1 to 4
_WALKERS_TURN, _FLOATERS_TURN = 9.0, 20.0  # degrees at most


@dataclass(frozen=True)
class Knobs:
    """What `make` was asked for; see there. Raises ValueError for a value out of range."""

    classes: int
    families: int
    context_bias: float
    habitats: Habitats
    part_size: float
    instances: int
    occlusion: float
    reflection: float
    clutter: float
    world: int
    worlds: int

    def __post_init__(self) -> None:
        ranges = {
            "families": (1, len(earth.FAMILIES)),
            "classes": (2, earth.EACH * self.families),
            "context_bias": (0, 1),
            "part_size": (0.05, 0.6),
            "instances": (1, MAX_INSTANCES),
            "occlusion": (0, 0.8),
            "reflection": (0, 1),
            "clutter": (0, 1),
            "world": (0, 2**31),
            "worlds": (1, MAX_WORLDS),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {getattr(self, name)!r}")
        for name in ("classes", "families", "instances", "world", "worlds"):
            if int(getattr(self, name)) != getattr(self, name):
                raise ValueError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if self.habitats not in ("own", "shuffled", "swapped"):
            raise ValueError(f'habitats must be "own", "shuffled" or "swapped", not {self.habitats!r}')


@dataclass(frozen=True)
class Plan:
    """What n pictures show, before anything is drawn.

    Attributes:
        labels, habitats, moods: Int[n]; mood 0 is day, 1 dusk.
        skies: Float[n,4], as `drawing.draw` takes them.
        places: Float[n,P,PLACE_COLUMNS].
        captions: String[n].
    """

    labels: Ints
    habitats: Ints
    moods: Ints
    skies: Floats
    places: Floats
    captions: NDArray[np.str_]

    def take(self, rows: Ints) -> Plan:
        """The plan of some of the pictures, in the given order."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class _Objects:
    """Where the objects of n pictures are: each Float[n,m] but flip, Bool[n,m], and pose, Int[n,m]."""

    x: Floats
    y: Floats
    half_width: Floats
    half_height: Floats
    scale: Floats
    turn: Floats
    stretch: Floats
    light: Floats
    flip: NDArray[np.bool_]
    pose: Ints

    @property
    def foot(self) -> Floats:
        return self.y + self.half_height


def uniforms(seed: int, stream: str, n: int, width: int) -> Floats:
    """Random numbers in [0,1), Float[n,width]; row i is the same for every n."""
    entropy = np.random.SeedSequence([seed, _STREAMS.index(stream)])
    return np.random.Generator(np.random.PCG64(entropy)).random((n, width))


def _choose(u: Floats, count: int) -> Ints:
    return np.minimum((u * count).astype(np.int64), count - 1)


def labels(n: int, seed: int, classes: int) -> Ints:
    """Class of each picture, Int[n]: every run of `classes` pictures holds each class once, in random order."""
    rounds = uniforms(seed, "label", -(-n // classes), classes).argsort(axis=1, kind="stable")
    return rounds.reshape(-1)[:n]


def habitats(label: Ints, seed: int, knobs: Knobs, species: tuple[Species, ...]) -> Ints:
    """Habitat of each picture, Int[n]: with probability `context_bias` the species' own, else any of the six.

    "shuffled" gives the own habitat of a random class in its place, "swapped" that of another species, always the same.
    """
    u = uniforms(seed, "habitat", len(label), 3)
    owner = _choose(u[:, 2], knobs.classes) if knobs.habitats == "shuffled" else label
    own = np.array([s.habitat for s in species])[owner]
    if knobs.habitats == "swapped":
        own = own - own % 3 + (own + 1) % 3
    return np.where(u[:, 0] < knobs.context_bias, own, _choose(u[:, 1], len(HABITATS)))


def _objects(family: Ints, horizon: Floats, seed: int, instances: int) -> _Objects:
    u = uniforms(seed, "pose", len(family), 10 * MAX_INSTANCES).reshape(len(family), MAX_INSTANCES, 10)
    u = u[:, :instances].transpose(2, 0, 1)
    half = _HALF[family][:, None, :]  # [n,1,2]
    side = 0.21 + 0.42 * u[0]
    scale = side * np.sqrt(_SHARE[instances - 1]) / np.sqrt(4 * half[..., 0] * half[..., 1])
    columns, rows = (1, 1) if instances == 1 else (2, 1) if instances == 2 else (2, 2)
    scale = np.minimum(
        scale, np.minimum(0.46 / columns / (half[..., 0] + _REACH), 0.46 / rows / (half[..., 1] + _REACH))
    )
    wide, high = half[..., 0] * scale, half[..., 1] * scale
    slot = np.arange(instances)
    left, top = (slot % columns) / columns, (slot // columns) / rows
    margin = wide + _REACH * scale
    x = left + margin + (1 / columns - 2 * margin) * u[1]
    floats = _FLOATS[family][:, None]
    low, lowest = top + high + _REACH * scale, top + 1 / rows - high
    low = np.where(floats, low, np.maximum(low, np.minimum(lowest, horizon[:, None] + 0.12 - high)))
    turn = (2 * u[3] - 1) * np.where(floats, _FLOATERS_TURN, _WALKERS_TURN)
    y = low + (lowest - low) * u[2]
    return _Objects(
        x, y, wide, high, scale, turn, 0.92 + 0.16 * u[5], 0.88 + 0.2 * u[6], u[4] < 0.5, _choose(u[7], POSES)
    )  # fmt: skip


def _rows(
    sprite: Ints | int, x: Floats, y: Floats, wide: Floats, high: Floats, tint: Floats, *, alpha: float = 1.0
) -> Floats:
    """Placements Float[n,m,PLACE_COLUMNS] of upright sprites, stretched by `wide` and `high`; tint Float[n,m|1,3]."""
    places = np.zeros((*x.shape, PLACE_COLUMNS))
    places[..., 0], places[..., 1], places[..., 2], places[..., 3] = sprite, x, y, wide
    places[..., 6], places[..., 7] = high, np.minimum(np.abs(wide), np.abs(high))
    places[..., 8:11], places[..., 11] = tint, alpha
    return places


def _animals(objects: _Objects, animal: Ints, first: int, light: Floats) -> Floats:
    tint = light[:, None, :] * objects.light[..., None]
    places = _rows(
        first + POSES * animal[:, None] + objects.pose, objects.x, objects.y, objects.scale, objects.scale, tint
    )
    radians = np.deg2rad(objects.turn)
    cos, sin = np.cos(radians) * objects.scale, np.sin(radians) * objects.scale
    mirror = np.where(objects.flip, -1.0, 1.0) * objects.stretch
    places[..., 3:7] = np.stack([cos * mirror, -sin / objects.stretch, sin * mirror, cos / objects.stretch], axis=-1)
    places[..., 12] = np.arange(1, objects.x.shape[1] + 1)
    return places


def _reflections(objects: _Objects, animals: Floats, seed: int, chance: float, water: Floats) -> tuple[Floats, Floats]:
    """Pools of water below the objects, and the objects' mirror images in them; nothing where there is no pool."""
    wet = uniforms(seed, "reflection", len(objects.x), 1) < chance
    squash = np.clip(0.5 * (1 - objects.foot) / objects.half_height, 0.35, 0.9)
    depth = squash * objects.half_height
    pools = _rows(
        PROP_NUMBER["pool"], objects.x, objects.foot + depth, 0.8 * objects.scale, 2.6 * depth, water, alpha=0.9
    )
    images = animals.copy()
    images[..., 2] = objects.foot + depth
    images[..., 5:7] *= -squash[..., None]
    images[..., 8:11] *= np.array([0.78, 0.88, 1.0])
    images[..., 11], images[..., 12] = 0.46, 0
    for places in (pools, images):
        places[..., 0] = np.where(wet, places[..., 0], -1)
    return pools, images


def _landscape(seed: int, habitat: Ints, horizon: Floats, light: Floats) -> Floats:
    """Trees and the like near the horizon, then tufts and stones on the ground, far ones first."""
    layers = []
    for stream, names, count in (("tall", TALL, 9), ("low", LOW, 10)):
        u = uniforms(seed, stream, len(habitat), 4 * count).reshape(len(habitat), count, 4)
        depth = np.sort(u[..., 0], axis=1)
        numbers = np.array([[PROP_NUMBER[name] for name in row] for row in names])
        sprite = numbers[habitat[:, None], _choose(u[..., 1], numbers.shape[1])]
        tall = stream == "tall"
        start, span = (0.02, 0.22) if tall else (0.12, 0.95)
        y = horizon[:, None] + start + span * depth * (1 - horizon[:, None])
        high = (0.12 + 0.24 * depth if tall else 0.07 + 0.09 * depth) * (0.8 + 0.4 * u[..., 3])
        wide = high * np.where(u[..., 3] * 8 % 1 < 0.5, -1.0, 1.0)
        layers.append(_rows(sprite, u[..., 2], y, wide, high, light[:, None, :]))
    return np.concatenate(layers, axis=1)


def _distractors(seed: int, horizon: Floats, clutter: float, light: Floats) -> Floats:
    """Up to six brightly coloured things that are no animal."""
    u = uniforms(seed, "clutter", len(horizon), 24).reshape(len(horizon), 6, 4)
    numbers = np.array([PROP_NUMBER[name] for name in DISTRACTORS])
    kind = _choose(u[..., 0], len(numbers))
    flying = np.char.endswith(np.array(DISTRACTORS), "balloon")[kind]
    base = horizon[:, None] + 0.15
    y = np.where(flying, 0.22 + 0.5 * u[..., 1], base + (0.98 - base) * u[..., 1])
    high = 0.11 + 0.1 * u[..., 3]
    places = _rows(numbers[kind], 0.03 + 0.94 * u[..., 2], y, high, high, light[:, None, :])
    places[:, round(6 * clutter) :, 0] = -1
    return places


def _covers(objects: _Objects, seed: int, habitat: Ints, hidden: float, light: Floats) -> Floats:
    """Foreground that hides the given fraction of each object's extent: leaves from below, or a trunk from one side."""
    u = uniforms(seed, "occlusion", len(habitat), MAX_INSTANCES)[:, : objects.x.shape[1]]
    below, from_left = u < 0.5, u < 0.75
    tints = earth.COVERS[habitat] * light[:, None, :]
    top = objects.foot - 2 * hidden * objects.half_height
    half = 0.5 * objects.scale
    leaves = _rows(PROP_NUMBER["bush"], objects.x, top + half, 2.5 * objects.half_width, half, tints[:, None, 0])
    width = 2 * hidden * objects.half_width + 0.06 * objects.scale
    inward = objects.half_width + 0.06 * objects.scale - 0.5 * width
    x = np.where(from_left, objects.x - inward, objects.x + inward)
    trunk = _rows(PROP_NUMBER["post"], x, objects.y, width, 0.7 * objects.scale, tints[:, None, 1])
    places = np.where(below[..., None], leaves, trunk)
    if hidden == 0:
        places[..., 0] = -1
    return places


_COUNT_WORDS = ("a", "two", "three", "four")
_TEMPLATES = (
    "{thing} {verb} in {place}",
    "{thing} in {place}",
    "a picture of {thing} {verb} in {place}",
    "{place} with {thing}",
    "in {place}, {thing} {verb}",
)


def _captions(
    label: Ints, habitat: Ints, mood: Ints, seed: int, instances: int, species: tuple[Species, ...]
) -> list[str]:
    u = uniforms(seed, "caption", len(label), 2)
    template, verb = _choose(u[:, 0], len(_TEMPLATES)), _choose(u[:, 1], 3)
    plural = "" if instances == 1 else "s"
    words = []
    for k, h, dusk, t, v in zip(label, habitat, mood, template, verb, strict=True):
        one = species[k]
        name = one.name + (plural if earth.FAMILIES[one.family] in ("heron", "beetle") else "")
        thing = f"{_COUNT_WORDS[instances - 1]} {name}"
        text = _TEMPLATES[t].format(thing=thing, verb=earth.VERBS[one.family][v], place=earth.PLACES[h])
        words.append(text + (" at dusk" if dusk else ""))
    return words


def plan(n: int, seed: int, knobs: Knobs, species: tuple[Species, ...]) -> Plan:
    """What pictures 0 to n-1 of a seed show. After the props come animals, of every world and class POSES."""
    label = labels(n, seed, knobs.classes)
    habitat = habitats(label, seed, knobs, species)
    u = uniforms(seed, "backdrop", n, 5)
    mood = (u[:, 4] < 0.35).astype(np.int64)
    ground = 0.3 + 0.2 * u[:, 0] - (0.16 if knobs.instances > 2 else 0.0)
    horizon = ground + _HORIZON_SHIFT[habitat]
    skies = np.stack([horizon, u[:, 1], (0.06 + 0.8 * u[:, 2]) * ground, np.floor(u[:, 3] * 1e6)], axis=1)
    light = earth.LIGHTS[habitat, mood]
    objects = _objects(np.array([s.family for s in species])[label], ground, seed, knobs.instances)
    animal = label + knobs.classes * (np.arange(n) % knobs.worlds)
    animals = _animals(objects, animal, len(PROP_NUMBER), light)
    palette = earth.PALETTES[habitat, mood]
    water = (0.5 * (palette[:, SKY_TOP] + palette[:, SKY_LOW]) / 255.0)[:, None, :]
    shadows = _rows(
        PROP_NUMBER["shadow"], objects.x, objects.foot, 2 * objects.half_width, objects.scale, light[:, None, :]
    )
    places = [
        _landscape(seed, habitat, horizon, light),
        _distractors(seed, horizon, knobs.clutter, light),
        *_reflections(objects, animals, seed, knobs.reflection, water),
        shadows,
        animals,
        _covers(objects, seed, habitat, knobs.occlusion, light),
    ]
    captions = np.array(_captions(label, habitat, mood, seed, knobs.instances, species))
    return Plan(label, habitat, mood, skies.round(6), np.concatenate(places, axis=1).round(6), captions)
