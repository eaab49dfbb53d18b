"""Detectors of one class on the maps of any backbone, from the parts of torchvision and transformers.

What is ours: they stand on maps that are already there, take pictures at the size they come in, and hand out the
foreground probability p of every sample that their classifier judges. Each has the two functions

    losses(maps, images, boxes) -> (named losses, p), in training mode
    detect(maps, images) -> for each picture its boxes Float[N,4], best first, and their scores Float[N]

with `maps` Float[B,C,h,w], fine ones first, `images` Float[B,3,H,W] (of which only the size is used), and `boxes` for
each picture Float[N,4] in its pixels, all with something inside; N may be 0, in all pictures of a batch too. `slow`
says which parameters are to learn at the rate of the backbone, by parts of their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import fcos
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_convert, clip_boxes_to_image

from wsol_lib.types import RecipeError

Found = tuple[Tensor, Tensor]  # boxes Float[N,4] of a picture, best first, and their scores Float[N]


def sides(images: Tensor) -> Tensor:
    """(W, H, W, H) of pictures Float[B,3,H,W]."""
    return images.new_tensor([images.shape[-1], images.shape[-2]] * 2)


class CentredAnchors(AnchorGenerator):
    """torchvision's anchors, moved from the left upper corners of the map's cells to their centres.

    On the single map of stride 32 the corner is off by 16 pixels, and no anchor would lie right of 192 in 224.
    """

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """Anchors Float[hwA,4] of each level, in pixels of the picture."""
        cornered = super().grid_anchors(grid_sizes, strides)
        return [boxes + torch.stack([w, h, w, h]) / 2 for boxes, (h, w) in zip(cornered, strides, strict=True)]


def _targets(boxes: Sequence[Tensor], label: int) -> list[dict[str, Tensor]]:
    return [{"boxes": b, "labels": torch.full((len(b),), label, dtype=torch.int64, device=b.device)} for b in boxes]


def _listed(images: Tensor) -> ImageList:
    return ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images))


class BinaryFCOSHead(fcos.FCOSHead):
    """torchvision's head with the cross-entropy of eq. 1, a mean over all places, instead of the focal loss."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """`classification`, and torchvision's `bbox_regression` (GIoU) and `bbox_ctrness`, means over positives."""
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        foreground = (torch.stack(matched_idxs) >= 0).float()  # [B,hw]
        logits = head_outputs["cls_logits"][..., 0]
        return {**losses, "classification": F.binary_cross_entropy_with_logits(logits, foreground)}


class FCOS(nn.Module):
    """Each place of the maps says whether it lies on an object, how far its box reaches, and how central it is.

    With one map of stride 32 and one convolution a branch this is the paper's: 99.12 M parameters on a ResNet-50.

    Args:
        channels, strides: of the maps, fine ones first; all have the same channels, a multiple of 32.
        towers: convolutions of each branch before its last one.
        radius: a place is positive within so many strides of an object's centre, if it lies inside the object. A box
            smaller than a stride may hold no place, and then teaches nothing but background.
        nms: of two boxes that overlap more, the less sure is dropped.

    Raises:
        RecipeError: the channels are no multiple of 32, which the group norms need.
    """

    slow: tuple[str, ...] = ()

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, towers: int = 1, radius: float = 1.5, nms: float = 0.6
    ) -> None:
        super().__init__()
        if channels[0] % 32:
            raise RecipeError(f"FCOS needs maps whose channels are a multiple of 32, not {channels[0]}: set neck: fpn")
        shared = nn.Module()  # torchvision asks its backbone for the number of channels, and we call no more of it
        shared.out_channels = channels[0]  # type: ignore[assignment]
        self.parts = fcos.FCOS(
            shared,
            num_classes=1,
            anchor_generator=CentredAnchors(tuple((stride,) for stride in strides), ((1.0,),) * len(strides)),
            head=BinaryFCOSHead(channels[0], 1, 1, towers),
            center_sampling_radius=radius,
            score_thresh=-1.0,  # keep even what is hardly seen: one box a picture must remain
            nms_thresh=nms,
        )

    def losses(self, maps: list[Tensor], images: Tensor, boxes: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """L_sup by parts, and p Float[B,hw] of all places."""
        said = self.parts.head(maps)
        anchors = self.parts.anchor_generator(_listed(images), maps)
        found = self.parts.compute_loss(_targets(boxes, 0), said, anchors, [m[0, 0].numel() for m in maps])
        names = {"classification": "classification", "bbox_regression": "regression", "bbox_ctrness": "centerness"}
        return {names[key]: loss for key, loss in found.items()}, said["cls_logits"][..., 0].float().sigmoid()

    def detect(self, maps: list[Tensor], images: Tensor) -> list[Found]:
        """Boxes and their scores, the root of p times centerness."""
        places, listed = [m[0, 0].numel() for m in maps], _listed(images)
        said = {key: list(value.split(places, 1)) for key, value in self.parts.head(maps).items()}
        anchors = [list(a.split(places)) for a in self.parts.anchor_generator(listed, maps)]
        found = self.parts.postprocess_detections(said, anchors, listed.image_sizes)
        return [(one["boxes"], one["scores"]) for one in found]


class FasterRCNN(nn.Module):
    """A first stage proposes regions, a second one tells objects from background and mends the boxes.

    p is that of the second stage; the entropy leaves the first one alone. Thresholds of IoU are the usual ones (.7 and
    .3 for proposals, .5 for regions). The paper names neither anchors nor numbers of regions: those here are ours. Of
    several maps a region is read in the one that torchvision chooses: up to 448 pixels, in those of stride 16 or less.

    Args:
        channels, strides: of the maps, fine ones first; all have the same channels.
        sizes: roots of the areas of the anchors, in strides; 2, 4 and 6 are 64, 128 and 192 pixels at stride 32.
        ratios: their heights by their widths.
        regions: sampled regions a picture that the second stage learns from.
        positive_fraction: at most so many of them are positive; .5 is the paper's 1:1, .2 its best, 1:4.
        proposals: regions that the first stage hands on.
        width: of the second stage's two layers.
        nms: of two final boxes that overlap more, the less sure is dropped.
    """

    slow: tuple[str, ...] = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        sizes: Sequence[float] = (2, 4, 6),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        regions: int = 64,
        positive_fraction: float = 0.5,
        proposals: int = 300,
        width: int = 1024,
        nms: float = 0.5,
    ) -> None:
        super().__init__()
        anchors = CentredAnchors(
            tuple(tuple(size * stride for size in sizes) for stride in strides), (tuple(ratios),) * len(strides)
        )
        head = RPNHead(channels[0], anchors.num_anchors_per_location()[0])
        kept = {"training": proposals, "testing": proposals}
        self.first = RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, kept, kept, nms_thresh=0.7)
        pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], output_size=7, sampling_ratio=2)
        self.second = RoIHeads(
            pool, TwoMLPHead(49 * channels[0], width), FastRCNNPredictor(width, 2), 0.5, 0.5, regions,
            positive_fraction, None, score_thresh=-1.0, nms_thresh=nms, detections_per_img=100,
        )  # fmt: skip

    def _classify(self, maps: Mapping[str, Tensor], regions: list[Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits Float[R,2] (background, object) and corrections Float[R,8] of all regions of all pictures."""
        pooled = self.second.box_roi_pool(maps, regions, _listed(images).image_sizes)
        return self.second.box_predictor(self.second.box_head(pooled))

    def losses(self, maps: list[Tensor], images: Tensor, boxes: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """L_sup by parts, and p Float[R] of the sampled regions."""
        named, targets = _named(maps), _targets(boxes, 1)
        regions, proposing = self.first(_listed(images), named, targets)
        regions, _, labels, wanted = self.second.select_training_samples(regions, targets)
        logits, corrections = self._classify(named, regions, images)
        classification, regression = fastrcnn_loss(logits, corrections, labels, wanted)
        losses = {
            "objectness": proposing["loss_objectness"],
            "proposals": proposing["loss_rpn_box_reg"],
            "classification": classification,
            "regression": regression,
        }
        return losses, logits.float().softmax(1)[:, 1]

    def detect(self, maps: list[Tensor], images: Tensor) -> list[Found]:
        """Boxes and their scores, the second stage's p."""
        listed, named = _listed(images), _named(maps)
        regions, _ = self.first(listed, named)
        said = self._classify(named, regions, images)
        boxes, scores, _ = self.second.postprocess_detections(*said, regions, listed.image_sizes)
        return list(zip(boxes, scores, strict=True))


def _named(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(i): m for i, m in enumerate(maps)}


class _Given(nn.Module):
    """Stands where transformers has a convolutional encoder, and hands out the maps that lie ready."""

    maps: Sequence[Tensor] = ()

    def forward(self, pixels: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The maps, each with a mask of ones: nothing is padded."""
        return [(m, torch.ones_like(m[:, 0], dtype=torch.bool)) for m in self.maps]


class DeformableDETR(nn.Module):
    """Queries look at a few places of all maps and each gives one box or none; no anchors, no suppression.

    Built from the configuration of `transformers`, with random weights. The loss is the one that comes with it: focal
    where eq. 1 has the cross-entropy, L1 and GIoU for the boxes, summed over the layers of the decoder; p is taken of
    every layer. The rates of what places the samples (`slow`) are those of the trunk.

    Args:
        channels, strides: of the maps, fine ones first.
        queries: at most so many objects a picture.
        layers: of the encoder, and of the decoder.
        levels: maps that it reads, at least as many as are given; the others are made from the coarsest by stride 2.
        width: of the transformer.

    Raises:
        RecipeError: `transformers` is not installed, or more maps are given than are read.
    """

    slow = ("sampling_offsets", "reference_points")

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        queries: int = 300,
        layers: int = 6,
        levels: int = 4,
        width: int = 256,
    ) -> None:
        super().__init__()
        try:
            hf: Any = import_module("transformers")
        except ImportError as error:
            raise RecipeError(
                "Deformable DETR needs Python 3.11 or later and the package transformers: pip install wsol-lib[detr]"
            ) from error
        if len(channels) > levels:
            raise RecipeError(
                f"Deformable DETR is given {len(channels)} maps and reads {levels}: raise the option levels"
            )
        stages = [f"stage{i + 1}" for i in range(len(channels))]
        trunk = hf.ResNetConfig(hidden_sizes=list(channels), depths=[1] * len(channels), out_features=stages)
        config = hf.DeformableDetrConfig(
            backbone_config=trunk,
            num_labels=1,
            auxiliary_loss=True,
            num_queries=queries,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            num_feature_levels=levels,
        )
        self.network: Any = hf.DeformableDetrForObjectDetection(config)
        self.network.model.backbone = _Given()  # the trunk of the configuration only told the widths of our maps
        for last in self.network.class_embed:
            nn.init.constant_(last.bias, -math.log(99))  # p = .01 at the start, as the focal loss wants it

    def _run(self, maps: list[Tensor], images: Tensor, **labels: Any) -> Any:
        given = self.network.model.backbone
        given.maps = maps
        said = self.network(images, **labels)
        given.maps = ()
        return said

    def losses(self, maps: list[Tensor], images: Tensor, boxes: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """L_sup by parts, each a sum over the layers of the decoder, and p Float[L,B,Q]."""
        relative = [box_convert(b, "xyxy", "cxcywh") / sides(images) for b in boxes]
        labels = [{"class_labels": torch.zeros_like(b[:, 0], dtype=torch.int64), "boxes": b} for b in relative]
        said = self._run(maps, images, labels=labels)
        config = self.network.config
        prices = {
            "classification": ("loss_ce", 1),
            "regression": ("loss_bbox", config.bbox_loss_coefficient),
            "giou": ("loss_giou", config.giou_loss_coefficient),
        }
        losses = {
            name: price * torch.stack([loss for key, loss in said.loss_dict.items() if key.startswith(term)]).sum()
            for name, (term, price) in prices.items()
        }
        logits = torch.stack([*(layer["logits"] for layer in said.auxiliary_outputs), said.logits])  # [L,B,Q,1]
        return losses, logits[..., 0].float().sigmoid()

    def detect(self, maps: list[Tensor], images: Tensor) -> list[Found]:
        """Boxes and their scores, the last layer's p."""
        said = self._run(maps, images)
        scores, order = said.logits[..., 0].sigmoid().sort(1, descending=True)  # [B,Q]
        boxes = box_convert(said.pred_boxes * sides(images), "cxcywh", "xyxy")  # [B,Q,4]
        boxes = clip_boxes_to_image(boxes, (images.shape[-2], images.shape[-1]))
        return [(b[o], s) for b, o, s in zip(boxes, order, scores, strict=True)]


DETECTORS: dict[str, type[FCOS] | type[FasterRCNN] | type[DeformableDETR]] = {
    "fcos": FCOS,
    "faster-rcnn": FasterRCNN,
    "deformable-detr": DeformableDETR,
}
