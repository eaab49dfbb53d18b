"""Draw the picture of the README and of the first page: `python -m tools.result_picture`. No network is needed.

A cat above a cup of coffee, and what the default network of `wsol predict` points at when it is asked for each. Both
are from scikit-image (CC0): Chelsea by Stéfan van der Walt, the coffee by Rachel Michetti. The chapter 00 explains it.
"""

from __future__ import annotations

import numpy as np
import skimage.data
from PIL import Image

from tools.first_cell import ROOT
from wsol_lib import backbones, figures
from wsol_lib.data.geometry import to_tensor
from wsol_lib.methods.cam import CAM
from wsol_lib.photo import class_number, locate

PICTURE = ROOT / "book" / "_static" / "readme.jpg"
ASKED = ("Egyptian cat", "espresso")


def main() -> None:
    """Write the picture: the two photographs as one, then map and box for each question."""
    cat = Image.fromarray(skimage.data.chelsea())
    both = Image.fromarray(np.vstack([cat, Image.fromarray(skimage.data.coffee()).resize(cat.size)]))
    network, classes = CAM.pretrained(backbones.create(weights="lite0-pip")), backbones.imagenet_classes()
    answers = [locate(network, classes, both, wanted=class_number(name, classes)) for name in ASKED]
    image = to_tensor(both)
    figures.style()
    figure = figures.gallery(
        [image, *(figures.overlay(image, answer.score_map) for answer in answers)],
        titles=["the picture", *(f"where is the {name}?" for name in ASKED)],
        predicted=[answers[0].box.new_zeros(0, 4), *(answer.box[None] for answer in answers)],
        columns=3,
        alt="A cat above a cup of coffee; the map and box of the cat; the map and box of the espresso.",
    )
    figure.set_size_inches(8.0, 4.0)
    figure.savefig(PICTURE, dpi=130, bbox_inches="tight", pil_kwargs={"quality": 88, "optimize": True})


if __name__ == "__main__":
    main()
