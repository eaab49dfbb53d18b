"""Scenes: a generated world whose causes are known, to test what papers on localization claim.

Species live in habitats. A family shares its body; a small telling part tells its species apart. So a classifier can
win by the part alone, or, where species keep to their habitats, by the landscape: the failures of weakly supervised
localization, each on its own knob.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsol_lib.data.dataset import Supervision, View, WsolDataset
from wsol_lib.data.geometry import Frame
from wsol_lib.data.scenes import drawing
from wsol_lib.data.scenes import world as earth
from wsol_lib.data.scenes.plan import Habitats, Knobs, Plan, plan
from wsol_lib.data.scenes.props import PROPS
from wsol_lib.data.scenes.world import Species

__all__ = ["SCENES_VERSION", "Scenes", "make"]

SCENES_VERSION = 1  # raised whenever the bytes of any picture change


class Scenes(WsolDataset):
    """Generated pictures, drawn when first asked for and then kept. Made by `make`.

    Boxes are half-open pixel edges `[x0, y0, x1, y1)`: the tight bounds of what is visible of each object, so that
    `mask[y0:y1, x0:x1]` holds all of it. An object of which nothing is visible has no box.

    Attributes:
        species: one `Species` a class; `families` their family names.
        habitats: Int[N], into `habitat_names`.
        captions: N sentences.
    """

    name = "scenes"

    def __init__(self, plan: Plan, species: tuple[Species, ...], sprites: tuple[NDArray, NDArray], size: int) -> None:
        self._plan, self.species, self.size = plan, species, size
        self._shapes, self._starts = sprites
        n = len(plan.labels)
        self.classes = tuple(s.name for s in species)
        self.families = tuple(earth.FAMILIES[s.family] for s in species)
        self.labels = torch.from_numpy(plan.labels.copy())
        self.habitats, self.habitat_names = plan.habitats, earth.HABITATS
        self.captions = plan.captions.tolist()
        self.image_ids = tuple(f"scene-{i:06d}" for i in range(n))
        self.image_sizes = torch.full((n, 2), size)
        self._pictures = np.empty((n, size, size, 3), np.uint8)
        self._owners = np.empty((n, size, size), np.uint8)
        self._drawn = np.zeros(n, bool)

    @property
    def images(self) -> NDArray[np.uint8]:
        """All pictures, UInt8[N,S,S,3]."""
        self._draw_all()
        return self._pictures

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Visible object pixels of all pictures, Bool[N,S,S]; refused in training."""
        return self._owned() > 0

    @property
    def part_masks(self) -> NDArray[np.bool_]:
        """Visible pixels of the telling parts, Bool[N,S,S], inside `masks`; refused in training."""
        return self._owned() >= drawing.PART_BIT

    def picture(self, i: int) -> Image.Image:
        """Picture i, RGB, drawn if it was not yet."""
        self._draw(i)
        return Image.fromarray(self._pictures[i])

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """As in every data set, with the picture's caption."""
        return {**super().item(i, frame), "caption": self.captions[i]}

    def subset(self, indices: Sequence[int] | Tensor) -> Scenes:
        """The same world with only the given pictures, in the given order; `index` counts anew from 0."""
        rows = np.array([int(i) for i in indices], dtype=np.int64)
        part = Scenes(self._plan.take(rows), self.species, (self._shapes, self._starts), self._pictures.shape[1])
        part.split, part.supervision, part.view = self.split, self.supervision, self.view
        part.image_ids = tuple(self.image_ids[i] for i in rows)
        return part

    def _boxes(self, i: int) -> Tensor:
        self._draw(i)
        numbers = self._owners[i] % drawing.PART_BIT
        boxes = [_bounds(numbers == k) for k in range(1, int(numbers.max()) + 1) if (numbers == k).any()]
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)

    def _mask(self, i: int) -> Tensor:
        self._draw(i)
        return torch.from_numpy(self._owners[i] > 0)

    def _owned(self) -> NDArray[np.uint8]:
        self._guard()
        self._draw_all()
        return self._owners

    def _draw(self, i: int) -> None:
        if not self._drawn[i]:
            habitat, plan = self._plan.habitats[i], self._plan
            palette = earth.PALETTES[habitat, plan.moods[i]]
            drawing.draw(palette, earth.RELIEFS[habitat], plan.skies[i], plan.places[i], self._shapes, self._starts,
                         self._pictures[i], self._owners[i])  # fmt: skip
            self._drawn[i] = True

    def _draw_many(self, rows: NDArray[np.int64]) -> None:
        for i in rows:
            self._draw(i)

    def _draw_all(self) -> None:
        missing = np.flatnonzero(~self._drawn)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the drawing itself holds no interpreter lock
            list(pool.map(self._draw_many, np.array_split(missing, 16)))


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _sprites(species: tuple[Species, ...], worlds: Iterable[int], part_size: float) -> tuple[NDArray, NDArray]:
    """All props, then for every world POSES of every species: their shapes in one table, where each sprite starts."""
    animals = [
        earth.animal(one, builds[one.family], pose, part_size)
        for builds in map(earth.builds, worlds)
        for one in species
        for pose in range(earth.POSES)
    ]
    sprites = [np.array(prop) for prop in PROPS.values()] + animals
    return np.concatenate(sprites), np.cumsum([0] + [len(sprite) for sprite in sprites])


def make(
    n: int,
    seed: int,
    *,
    size: int = 64,
    classes: int = 12,
    context_bias: float = 0.5,
    part_size: float = 0.3,
    instances: int = 1,
    occlusion: float = 0.0,
    reflection: float = 0.0,
    clutter: float = 0.3,
    habitats: Habitats = "own",
    families: int = 4,
    world: int = 0,
    worlds: int = 1,
    split: str = "test",
    supervision: Supervision = "image",
    view: View | None = None,
) -> Scenes:
    """Pictures 0 to n-1 of the world that a seed describes; picture i is the same for every n and at every size.

    Args:
        n: how many pictures.
        seed: which pictures; use other seeds for training than for testing.
        size: width and height, 16 to 1024 pixels.
        classes: 2 to 200 species, at most 50 a family; class k belongs to family k mod `families`.
        context_bias: 0 to 1: the share of pictures in which a species is in its own habitat for certain; the others
            take any of the six habitats. 0 makes habitat and species independent.
        part_size: 0.05 to 0.6, length of the telling part in body lengths.
        instances: 1 to 4 objects of one species a picture.
        occlusion: 0 to 0.8, fraction of each object's width or height that foreground hides.
        reflection: 0 to 1, the chance that the objects are mirrored in water; a mirror image is no object.
        clutter: 0 to 1, how many brightly coloured distractors, none to six.
        habitats: what "own" habitat means: "own"; "shuffled", that of a random species; "swapped", always that of
            one wrong species. Train with "own" and test with the others to see who leans on the landscape.
        families: 1 to 4. With 4, the body already says much of the class; with 1, only the telling part does.
        world: 0, or a number for a world of other colours, proportions and names, for pretraining.
        worlds: 1 to 100: the species of `world` have in turn, picture by picture, the colours and proportions of that
            world and of those after it, so that a body is no longer known by its colour.
        split: "train" hides boxes and masks.
        supervision: "oracle" shows them in training all the same.
        view: decides the frame of pictures and boxes, as in `load`.

    Raises:
        ValueError: a knob is out of its range.
    """
    knobs = Knobs(
        classes, families, context_bias, habitats, part_size, instances, occlusion, reflection, clutter, world, worlds
    )
    if n < 0 or seed < 0 or not 16 <= size <= 1024:
        raise ValueError(f"n and seed must not be negative and size must be 16 to 1024, not {n}, {seed} and {size}")
    species = earth.all_species(world, families)[:classes]
    sprites = _sprites(species, range(world, world + worlds), part_size)
    scenes = Scenes(plan(n, seed, knobs, species), species, sprites, size)
    scenes.split, scenes.supervision, scenes.view = split, supervision, view
    return scenes
