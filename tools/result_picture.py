"""Draw the picture of the README and of the first page: `python -m tools.result_picture`. No network is needed.

The cat is Chelsea, by Stéfan van der Walt (CC0), from scikit-image. The network is the default of `wsol predict`.
"""

from __future__ import annotations

import skimage.data
from PIL import Image

from tools.first_cell import ROOT
from wsol_lib import backbones, figures
from wsol_lib.data.geometry import to_tensor
from wsol_lib.methods.cam import CAM
from wsol_lib.photo import locate

PICTURE = ROOT / "book" / "_static" / "readme.png"


def main() -> None:
    """Write the picture: the photograph, the map of its likeliest class, and the box drawn from the map."""
    photograph = Image.fromarray(skimage.data.chelsea())
    network = CAM.pretrained(backbones.create(weights="lite0-pip"))
    found = locate(network, backbones.imagenet_classes(), photograph)
    image = to_tensor(photograph)
    figures.style()
    figure = figures.gallery(
        [image, figures.overlay(image, found.score_map), image],
        titles=["the photograph", f"the map of “{found.name.split(',')[0]}”", "the box from the map"],
        predicted=[found.box.new_zeros(0, 4), found.box[None], found.box[None]],
        columns=3,
        alt="A cat, the score map of its class over it, and the box drawn from the map.",
    )
    figure.set_size_inches(9.6, 2.4)
    figure.savefig(PICTURE, dpi=110)
    drawn = Image.open(PICTURE).convert("RGB")
    drawn.quantize(palette=drawn.quantize(256)).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
