"""What a training step of each detector costs beside the regressor of one box: `python benchmarks/detectors.py`.

Table 1 of the WEND paper on one's own machine: SCR, the three binary-class detectors, each without and with the
weighted entropy, and FCOS with 200 classes; a ResNet-50 with random weights, random pictures of 224 px with one box
each. One thread, medians of interleaved repeats in one run. The paper's seconds are those of its batch and machine:
compare ratios. Deformable DETR needs the package transformers.
"""

from __future__ import annotations

import argparse

import torch
from timing import medians, training_step
from torchvision.models.detection.fcos import FCOSHead

from wsol_lib import setup
from wsol_lib.backbones import create
from wsol_lib.methods.wend import SCR, WEND
from wsol_lib.types import Batch, Localizer

CLASSES = 200
PAPER = {"SCR": 0.331, "BCD, FCOS": 0.245, "FCOS, 200 classes": 0.382}  # seconds a batch


def with_classes(localizer: WEND) -> WEND:
    """FCOS with torchvision's own head and a logit for each class; which one the boxes are of costs nothing."""
    parts = localizer.detector.parts
    parts.head = FCOSHead(parts.backbone.out_channels, 1, CLASSES, num_convs=1)
    return localizer


def methods() -> dict[str, Localizer]:
    last, three = (("last",), ("stage3", "stage4", "stage5"))
    backbones = {
        "FCOS": ("fcos", last),
        "Faster R-CNN": ("faster-rcnn", last),
        "Deformable DETR": ("deformable-detr", three),
    }
    found: dict[str, Localizer] = {"SCR": SCR(create("resnet50"), CLASSES)}
    for title, (detector, stages) in backbones.items():
        for end, entropy in (("", None), (" + WE", "weighted")):
            backbone = create("resnet50", stages=stages)
            found[f"BCD, {title}{end}"] = WEND(backbone, CLASSES, detector=detector, entropy=entropy)
    found["FCOS, 200 classes"] = with_classes(WEND(create("resnet50"), CLASSES, entropy=None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    setup(0, threads=1)
    boxes = [torch.tensor([[40.0, 60, 160, 190]])] * options.batch
    batch: Batch = {"image": torch.rand(options.batch, 3, 224, 224), "pseudo_boxes": boxes}
    found = methods()
    times = medians([training_step(localizer, batch) for localizer in found.values()], options.repeats)
    print(f"ResNet-50, batches of {options.batch} at 224 px, medians of {options.repeats}")
    print(f"{'training step':28} {'parameters':>10} {'ms':>6} {'to SCR':>7} {'paper':>6}")
    for (title, localizer), seconds in zip(found.items(), times, strict=True):
        millions = sum(p.numel() for p in localizer.parameters()) / 1e6
        paper = f"{PAPER[title] / PAPER['SCR']:6.2f}" if title in PAPER else ""
        print(f"{title:28} {millions:8.2f} M {1e3 * seconds:6.0f} {seconds / times[0]:7.2f} {paper}")


if __name__ == "__main__":
    main()
