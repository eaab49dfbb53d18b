"""How long a batch of maps takes, beside pytorch-grad-cam's classes on the same network: `python benchmarks/cam.py`.

EfficientNet-Lite0 at 224 px, one thread, medians of interleaved repeats in one run. Both sides are called as their
users call them and give one map a picture, resized to the picture and scaled to [0,1].
"""

from __future__ import annotations

import argparse

import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timing import medians
from torch import Tensor, nn

from wsol_lib import maps
from wsol_lib.backbones import create
from wsol_lib.methods.cam import CAM

CLASSES = {
    "cam": "GradCAM",
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMPlusPlus",
    "xgrad-cam": "XGradCAM",
    "layer-cam": "LayerCAM",
    "hires-cam": "HiResCAM",
}
LAYERS = {"last": "bn2", "stage4": "blocks.4"}


class Whole(nn.Module):
    """The network as a plain module from normalised pictures to logits."""

    def __init__(self, localizer: CAM) -> None:
        super().__init__()
        self.network, self.head = localizer.network.network, localizer.head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head({"last": self.network.forward_features(inputs)})


def compare(localizer: CAM, images: Tensor, labels: Tensor, repeats: int) -> tuple[float, float, float]:
    """Median seconds a batch: the forward pass alone, this library, pytorch-grad-cam."""
    inputs = localizer.network.normalize(images)
    layer = localizer.network.network.get_submodule(LAYERS[localizer.stage])
    tool = getattr(pytorch_grad_cam, CLASSES[localizer.variant])(model=Whole(localizer), target_layers=[layer])
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    runs = (
        torch.no_grad()(lambda: tool.model(inputs)),
        lambda: maps.normalize(maps.resize(localizer.localize(images, labels).maps, 224, "bilinear")),
        lambda: tool(inputs, targets),
    )
    forward, ours, theirs = medians(runs, repeats)
    return forward, ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = torch.rand(options.batch, 3, 224, 224), torch.arange(options.batch)
    backbone = create(weights="lite0-pip", stages=("stage4", "last"))
    print(f"Lite0, {options.batch} pictures a batch, medians of {options.repeats}, milliseconds a picture")
    print(f"{'variant':12} {'stage':7} {'forward':>8} {'wsol_lib':>9} {'pytorch-grad-cam':>22} {'ratio':>6}")
    for stage in LAYERS:
        for variant in CLASSES if stage == "last" else list(CLASSES)[1:]:
            localizer = CAM.pretrained(backbone, variant=variant, stage=stage).eval()
            times = compare(localizer, images, labels, options.repeats)
            forward, ours, theirs = (1000 * t / options.batch for t in times)
            name = f"{CLASSES[variant]} {theirs:.1f}"
            print(f"{variant:12} {stage:7} {forward:8.1f} {ours:9.1f} {name:>22} {theirs / ours:6.1f}", flush=True)


if __name__ == "__main__":
    main()
