"""The book's pictures: one style, galleries with boxes and maps, and a slider that works on a static page.

Colours are those of Okabe and Ito (2008), which people with any common colour vision can tell apart. What matters is
never told by colour alone: a true box is solid, a predicted one dashed, so both survive a grey print.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from wsol_lib.maps import normalize, resize

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MAP_COLOURS = "inferno"  # perceptually even, dark to light, so it reads in grey too
MAP_WEIGHT = 0.5
TRUE_BOX: dict[str, Any] = {"edgecolor": "white", "linestyle": "-", "linewidth": 2.0}
PREDICTED_BOX: dict[str, Any] = {"edgecolor": COLOURS[1], "linestyle": (0, (3, 1.5)), "linewidth": 2.0}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of a colour

Picture = Figure | Image.Image | Tensor | np.ndarray


def style() -> None:
    """Set matplotlib to the book's style: legible on a page and on a phone, light paper in both themes."""
    mpl.rcParams.update(
        {
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 12,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (7.0, 3.8),
            "font.size": 12,
            "grid.alpha": 0.3,
            "image.cmap": MAP_COLOURS,
            "image.interpolation": "nearest",
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "savefig.facecolor": "white",
            "svg.hashsalt": "wsol",
        }
    )


def overlay(image: Tensor, score_map: Tensor) -> Tensor:
    """A picture with its score map over it: the grey picture below, the map's colour above.

    The map is resized to the picture (bicubic) and then min-max normalised, in the order of the default protocol.

    Args:
        image: Float[3,H,W] in [0,1].
        score_map: Float[h,w], any range; a constant map is drawn as zero.

    Returns:
        Float[3,H,W] in [0,1].
    """
    unit = normalize(resize(score_map[None].float(), (image.shape[1], image.shape[2])))[0]  # [H,W]
    colour = torch.from_numpy(mpl.colormaps[MAP_COLOURS](unit.numpy())[..., :3]).float().permute(2, 0, 1)  # [3,H,W]
    grey = torch.einsum("c,chw->hw", torch.tensor(LUMA, dtype=torch.float32), image.float())  # [H,W]
    return (MAP_WEIGHT * colour + (1 - MAP_WEIGHT) * grey).clamp(0, 1)


def draw_boxes(axes: Axes, boxes: Tensor, *, predicted: bool = False) -> None:
    """Draw boxes on a picture: solid white for the truth, dashed orange for a prediction, both outlined in black.

    Args:
        axes: holds a picture drawn with pixel edges at whole numbers, as `gallery` does.
        boxes: Float[N,4], `[x0, y0, x1, y1]` in pixels.
        predicted: whether they are a prediction.
    """
    look = PREDICTED_BOX if predicted else TRUE_BOX
    outline = [patheffects.Stroke(linewidth=4.0, foreground="black"), patheffects.Normal()]
    for x0, y0, x1, y1 in boxes.reshape(-1, 4).tolist():
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, path_effects=outline, **look))


def gallery(
    images: Tensor | Sequence[Tensor],
    *,
    alt: str,
    maps: Tensor | Sequence[Tensor] | None = None,
    boxes: Sequence[Tensor] | None = None,
    predicted: Sequence[Tensor] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """Pictures in a grid, with score maps over them, true boxes (solid) and predicted boxes (dashed).

    Args:
        images: Float[B,3,H,W] in [0,1], or B pictures of different sizes.
        alt: what a reader who cannot see the figure should know; the rendered book takes it from this call.
        maps: Float[B,h,w], any range.
        boxes: Float[N,4] an image, in its pixels.
        predicted: Float[N,4] an image, in its pixels.
        titles: one an image.
        columns: at most this many pictures in a row.

    Raises:
        ValueError: there is no picture or no alt text, or the lists differ in length.
    """
    _check_alt(alt)
    parts = {"maps": maps, "boxes": boxes, "predicted": predicted, "titles": titles}
    wrong = {name: len(part) for name, part in parts.items() if part is not None and len(part) != len(images)}
    if wrong or len(images) == 0:
        raise ValueError(f"gallery was given {len(images)} images, but {wrong or 'needs at least one'}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.2 * columns, (2.5 if titles else 2.2) * rows), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (image, axes) in enumerate(zip(images, grid.flat, strict=False)):
        _draw_picture(axes, image if maps is None else overlay(image, maps[i]))
        if boxes is not None:
            draw_boxes(axes, boxes[i])
        if predicted is not None:
            draw_boxes(axes, predicted[i], predicted=True)
        if titles is not None:
            axes.set_title(titles[i])
    return figure


def _draw_picture(axes: Axes, image: Tensor) -> None:
    height, width = image.shape[-2:]
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
    edge = 0.012 * max(height, width)  # so that a box on the border is seen whole
    axes.set(xlim=(-edge, width + edge), ylim=(height + edge, -edge))


@dataclass(frozen=True)
class SliderHTML:
    """A slider over ready-made frames, as one piece of HTML that needs no kernel and no network."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<slider, {len(self.html) // 1024} KiB>"


def slider(
    frames: Sequence[Picture],
    labels: Sequence[str],
    *,
    alt: str | Sequence[str],
    title: str = "frame",
) -> SliderHTML:
    """A range input that shows one of several ready-made frames.

    The arrow keys move it, a screen reader hears the label, and the same HTML works in JupyterLab, Colab and the
    rendered page. Where scripts do not run, the first frame stands. Figures are closed, lest they be shown twice.

    Args:
        frames: figures, PIL pictures, Float[3,H,W] tensors in [0,1], or uint8 arrays [H,W,3].
        labels: what each frame shows, a few words; read out as the slider moves.
        alt: one description of all frames, to which the label is added, or one for each frame.
        title: what the slider changes, such as "threshold".

    Raises:
        ValueError: there is no frame, the lists differ in length, or an alt text is missing.
    """
    alts = [f"{alt} {title}: {label}." for label in labels] if isinstance(alt, str) else list(alt)
    _check_alt(alt, *alts)
    if not len(frames) == len(labels) == len(alts) > 0:
        raise ValueError(f"slider was given {len(frames)} frames, {len(labels)} labels and {len(alts)} alt texts")
    images = [_frame(*parts, first=i == 0) for i, parts in enumerate(zip(frames, labels, alts, strict=True))]
    name, first = html.escape(title), html.escape(labels[0])
    # data-lm-suppress-shortcuts: JupyterLab leaves the arrow keys to the slider
    return SliderHTML(
        f'<div class="wsol-slider" role="group" aria-label="{name}" style="max-width:100%">{"".join(images)}'
        f'<div>{name}: <output aria-live="off" style="font-weight:600">{first}</output></div>'
        f'<input type="range" min="0" max="{len(frames) - 1}" step="1" value="0" autocomplete="off" '
        'data-lm-suppress-shortcuts="true" '
        f'aria-label="{name}" aria-valuetext="{first}" oninput="{_ON_INPUT}" '
        'style="width:100%;max-width:32rem;min-height:2rem;margin:0"></div>'
    )


_ON_INPUT = html.escape(
    "const box = this.closest('.wsol-slider');"
    "box.querySelectorAll('img').forEach((img, i) => img.style.display = i == this.value ? 'block' : 'none');"
    "const label = box.querySelectorAll('img')[this.value].dataset.label;"
    "box.querySelector('output').textContent = label;"
    "this.setAttribute('aria-valuetext', label);"
)


def _frame(picture: Picture, label: str, alt: str, first: bool) -> str:
    data, width = _data_url(picture)
    return (
        f'<img src="{data}" alt="{html.escape(alt)}" data-label="{html.escape(label)}" '
        f'style="display:{"block" if first else "none"};width:{width}px;max-width:100%;height:auto">'
    )


def _data_url(picture: Picture) -> tuple[str, int]:
    """The picture as the smaller of a 256-colour PNG and a JPEG, and its width in pixels."""
    image = _as_pil(picture)
    encoded = {}
    for kind, source, options in (
        ("png", image.quantize(256), {"optimize": True}),
        ("jpeg", image, {"quality": 88, "subsampling": 0}),
    ):
        buffer = io.BytesIO()
        source.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}", image.width


def _as_pil(picture: Picture) -> Image.Image:
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png")
        plt.close(picture)
        return Image.open(buffer).convert("RGB")
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, Tensor):
        picture = (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(picture).convert("RGB")


def _check_alt(*texts: str | Sequence[str]) -> None:
    if not all(texts) or not all(text.strip() for text in texts if isinstance(text, str)):
        raise ValueError("every figure needs an alt text: say in a sentence or two what it shows")
