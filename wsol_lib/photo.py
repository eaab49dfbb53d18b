"""A photograph from a file to a box: what `wsol predict` does to each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from wsol_lib.boxes import box_at
from wsol_lib.data.geometry import Frame, to_tensor
from wsol_lib.engine import to_original
from wsol_lib.maps import normalize, resize
from wsol_lib.types import DataCorrupt, DataMissing, Localizer, WsolError, nearest

SHORT_SIDE, CELL, LARGEST_DRAWN = 224, 32, 640


@dataclass(frozen=True)
class Finding:
    """Where one class is in one photograph.

    Attributes:
        name: of the class.
        top: (name, probability) of the likeliest classes, best first.
        box: Float[4], half-open, in pixels of the upright photograph.
        score_map: Float[h,w] in [0,1], over the whole photograph.
        probability: of the class, which need not be among `top`.
    """

    name: str
    top: tuple[tuple[str, float], ...]
    box: Tensor
    score_map: Tensor
    probability: float

    def as_dict(self) -> dict[str, Any]:
        """The finding without its map, for JSON."""
        top = [{"class": name, "probability": round(p, 4)} for name, p in self.top]
        box = [round(v, 1) for v in self.box.tolist()]
        return {"class": self.name, "probability": round(self.probability, 4), "box": box, "top": top}


def open_photo(path: Path) -> Image.Image:
    """The photograph in a file, RGB, turned upright as its camera noted.

    Raises:
        DataMissing: no such file.
        DataCorrupt: no picture, or a truncated one; the text names it.
    """
    if not path.is_file():
        raise DataMissing(f"there is no picture {path}")
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"cannot read {path} as a picture: {error}") from error


def keep_aspect(image_size: tuple[int, int]) -> Frame:
    """A frame for a photograph of (width, height): nearly its own shape, about 224 pixels at the short side.

    Both sides are multiples of 32, the stride of most networks, and no side is longer than three times the other.
    """
    scale = SHORT_SIDE / min(image_size)
    width, height = (min(max(round(side * scale / CELL), 1) * CELL, 3 * SHORT_SIDE) for side in image_size)
    return Frame(width, height)


def class_number(name: str, classes: Sequence[str]) -> int:
    """Which class a reader means by a name (one of its synonyms, in any case) or a number.

    Raises:
        WsolError: none; the text offers the nearest.
    """
    synonyms = {word.strip().casefold(): k for k, names in enumerate(classes) for word in (*names.split(","), names)}
    wanted = name.strip().casefold()
    if wanted.isdigit() and int(wanted) < len(classes):
        return int(wanted)
    if wanted not in synonyms:
        raise WsolError(f"the network knows no class {name!r}{nearest(wanted, synonyms)}")
    return synonyms[wanted]


@torch.no_grad()
def locate(
    localizer: Localizer,
    classes: Sequence[str],
    picture: Image.Image,
    *,
    frame: Callable[[tuple[int, int]], Frame] = keep_aspect,
    wanted: int | None = None,
    top: int = 5,
) -> Finding:
    """The box of one class in a photograph: the map's part above its Otsu threshold, the largest contour.

    Args:
        classes: names of the classes.
        frame: how the network sees a photograph of (width, height); it must show all of it to give boxes of all of it.
        wanted: number of the class; None takes the likeliest.
        top: how many of the likeliest classes to name.
    """
    seen = frame(picture.size)
    images = seen.image(picture)[None]  # [1,3,H,W]
    labels = None if wanted is None or not localizer.uses_labels else torch.tensor([wanted])
    found = localizer.eval().localize(images, labels).cpu()
    probabilities = torch.zeros(len(classes)) if found.logits is None else found.logits[0].softmax(0)
    best = probabilities.topk(min(top, len(classes)))
    score_map, box = _map_and_box(found.maps, found.boxes, images.shape[-2:])
    ranked = tuple((classes[int(k)], float(p)) for p, k in zip(*best, strict=True))
    chosen = int(best.indices[0]) if wanted is None else wanted
    original = to_original(box[None], seen, picture.size)[0]
    return Finding(classes[chosen], ranked, original, score_map, float(probabilities[chosen]))


def _map_and_box(maps: Tensor | None, boxes: list[Tensor] | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The map in [0,1] at the size the network saw, Float[H,W], and the one box in it, Float[4]."""
    from skimage.filters import threshold_otsu

    height, width = size
    score_map = torch.zeros(height, width) if maps is None else normalize(resize(maps[:1], (height, width)))[0]
    if boxes is not None and len(boxes[0]):
        return score_map, boxes[0][0].float()
    box = box_at(score_map, float(threshold_otsu(score_map.numpy())))
    return score_map, torch.as_tensor(box)[0].float()


def draw(picture: Image.Image, finding: Finding) -> Any:
    """A figure of the photograph with its box, and of the map over it."""
    from wsol_lib import figures

    figures.style()
    shown = picture.copy()
    shown.thumbnail((LARGEST_DRAWN, LARGEST_DRAWN))
    image = to_tensor(shown)
    box = finding.box[None] * shown.width / picture.width
    name = finding.name.split(",")[0]
    figure = figures.gallery(
        [image, figures.overlay(image, finding.score_map)],
        predicted=[box, box],
        titles=[f"{name} ({100 * finding.probability:.0f} %)", "where the network looks"],
        columns=2,
        alt=f"A photograph with a box around the {name}, and beside it the score map that the box was drawn from.",
    )
    figure.set_size_inches(9.0, 4.5 * shown.height / shown.width + 0.5)
    return figure
