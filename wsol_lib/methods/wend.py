"""Entropy weighting: a detector of one class, trained on pseudo boxes of which some are wrong.

An earlier stage (DDT, C2AM) marks one box in each training picture. PSOL (Zhang et al. 2020) fits a regressor to those
boxes: `SCR`, single-class regression. It has one box to give, so two objects get the box between them, and each wrong
pseudo box pulls as hard as a right one. WEND trains a detector that only tells object from background instead (BCD, a
binary-class detector): it may find several objects, and says how sure it is of each. A separate classifier names the
class. The detector's loss is that of its authors,

    L_sup = lambda1/N_cls sum_i BCE(p_i, p*_i) + lambda2/N_reg sum_i p*_i L_reg(t_i, t*_i)     (eq. 1, both lambda = 1)

over samples i: places (FCOS), sampled regions (Faster R-CNN), queries (Deformable DETR). p* comes from the pseudo
boxes, so a second term asks the detector to trust itself, by the entropy of its own p_i,

    L_unsup = 1/N sum_i w_i E(p_i),   E(p) = -p ln p - (1-p) ln(1-p)     (eq. 2)
    w_i = alpha (1-p_i)^gamma       if p_i >= tau1: foreground,
          (1-alpha) p_i^gamma       if p_i <= tau2: background,
          0                         between the two     (eq. 3)
    L_loc = eta L_sup + L_unsup     (eq. 4)

Eqs. 2 and 3 are a reconstruction from the paper's words. Nearly sure: the two branches, chosen by p alone, with the
modulating powers of the focal loss. Likely: alpha on the foreground and 1 - alpha on the background. Open: whether a
gradient flows through w (`detach`; it turns the sign below p = .5), and what N counts (here: all samples).

The detectors are those of `wsol_lib.detectors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, box_convert

from wsol_lib.backbones import Backbone, in_eval_mode
from wsol_lib.detectors import DETECTORS, sides
from wsol_lib.types import Batch, Frozen, Localization, Localizer, RecipeError, check_choice


def binary_entropy(p: Tensor) -> Tensor:
    """E(p) of eq. 2 in nats, for each probability of a tensor of any shape; 0 with a finite gradient at 0 and 1."""
    least = torch.finfo(p.dtype).tiny
    return -p * p.clamp(min=least).log() - (1 - p) * (1 - p).clamp(min=least).log()


def weighted_entropy(p: Tensor, alpha: float, gamma: float, tau1: float, tau2: float, detach: bool = False) -> Tensor:
    """The weighted entropy, eqs. 2 and 3.

    With alpha = .5, gamma = 0 and tau1 = tau2 it is half of the plain entropy, `binary_entropy(p).mean()`.

    Args:
        p: foreground probabilities in [0,1], any shape.
        alpha: in [0,1], the weight of the foreground; the background has 1 - alpha.
        gamma: at least 0; the larger, the less samples count that are nearly sure.
        tau1: from here upwards a sample is foreground.
        tau2: from here downwards it is background, if it is not foreground.
        detach: the weights are constants for the gradient. Then every p that counts is pushed away from .5. Without it
            the weight may fall too, and p is pushed up from tau1 on and down from tau2 on, unless tau1 is below .30,
            .21, .14 or .10 for gamma 1, 2, 4 or 6 (or tau2 above 1 minus that): what lies beyond flees the other way.

    Returns:
        The mean in nats over all elements, those that count 0 included; 0 where there is none.
    """
    least = torch.finfo(p.dtype).tiny  # a power below 1 has no slope at 0
    foreground = alpha * (1 - p).clamp(min=least).pow(gamma)
    background = (1 - alpha) * p.clamp(min=least).pow(gamma)
    weight = torch.where(p >= tau1, foreground, torch.where(p <= tau2, background, torch.zeros_like(p)))
    return ((weight.detach() if detach else weight) * binary_entropy(p)).sum() / max(1, p.numel())


def solid(boxes: Tensor) -> Tensor:
    """Those of the boxes Float[N,4] that have something inside: finite, and at least a pixel wide and high."""
    extent = boxes[:, 2:] - boxes[:, :2]
    return boxes[boxes.isfinite().all(1) & (extent >= 1).all(1)]


class _OnPseudoBoxes(Localizer):
    """What `SCR` and `WEND` share: a trunk, perhaps frozen, and a classifier of its own that names the class."""

    needs = ("pseudo_boxes",)
    uses_labels = False

    def __init__(self, backbone: Backbone, classes: int, classifier: Localizer | None, freeze_backbone: bool) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = Frozen(backbone) if freeze_backbone else backbone
        self.classifier = None if classifier is None else Frozen(classifier)

    def logits(self, images: Tensor) -> Tensor | None:
        """The classifier's logits Float[B,K]; None without one."""
        return None if self.classifier is None else self.classifier.module.localize(images).logits


class SCR(_OnPseudoBoxes):
    """Single-class regression: the pooled features say where the one object is (Zhang et al. 2020, PSOL).

    Two linear layers and a sigmoid give (x, y, w, h) of the box, x and y of its left upper corner, in parts of the
    picture's sides; the loss is 50 times their mean squared error, as in the code that C2AM released.

    Args:
        backbone: its deepest map is averaged over the picture.
        classes: number K of classes; only kept, the box knows none.
        classifier: names the class, for Top-1 and Top-5 Loc; None: no logits.
        hidden: width of the first layer.
        freeze_backbone: only the two layers learn.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        classifier: Localizer | None = None,
        hidden: int = 512,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__(backbone, classes, classifier, freeze_backbone)
        self.stage = list(backbone.channels)[-1]
        self.head = nn.Sequential(
            nn.Linear(backbone.channels[self.stage], hidden), nn.ReLU(), nn.Linear(hidden, 4), nn.Sigmoid()
        )

    def regress(self, images: Tensor) -> Tensor:
        """(x, y, w, h) Float[B,4] in (0,1)."""
        return self.head(self.backbone(images)[self.stage].mean((2, 3)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`regression`, to the first pseudo box of each picture that has one; the others are left out."""
        regressed = self.regress(batch["image"]).float()  # [B,4]
        boxes = [solid(boxes)[:1] for boxes in batch["pseudo_boxes"]]
        taught = torch.tensor([len(box) for box in boxes], device=regressed.device, dtype=torch.bool)
        wanted = box_convert(torch.cat(boxes), "xyxy", "xywh") / sides(batch["image"])
        errors = F.mse_loss(regressed[taught], wanted, reduction="sum")
        return {"regression": 50 * errors / max(1, wanted.numel())}

    def new_parts(self) -> list[nn.Module]:
        """The two layers."""
        return [self.head]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """One box a picture, without a score; it may end outside the picture."""
        with in_eval_mode(self):
            boxes = box_convert(self.regress(images) * sides(images), "xywh", "xyxy")
        return Localization(self.logits(images), boxes=list(boxes[:, None]))


class WEND(_OnPseudoBoxes):
    """A binary-class detector with the entropy of its own answers as a second loss (eq. 4).

    All means are over the samples that one process sees at once, as in torchvision: accumulation and further processes
    average them.

    Args:
        backbone: its deepest map is what the detector reads; all of its maps for a pyramid or for Deformable DETR.
        classes: number K of classes; only kept, the detector knows one.
        detector: a key of `DETECTORS`.
        neck: "single": the deepest map as it is; "fpn": a feature pyramid over all maps of the backbone.
        entropy: "weighted", "plain" (Table 10), or None, which leaves the plain binary-class detector.
        alpha, gamma, tau1, tau2, detach: of `weighted_entropy`; the defaults are the paper's best for CUB.
        eta: price of the supervised loss. With plain gradient descent it scales its rate, too.
        classifier: names the class, for Top-1 and Top-5 Loc; None: no logits.
        freeze_backbone: the backbone stays as it is, in eval mode, out of the checkpoint (Table 6).
        width: channels of the pyramid, a multiple of 32.
        options: further arguments of the detector.

    Raises:
        RecipeError: an unknown detector, neck or entropy, an option that the detector does not take, tau2 above tau1,
            or maps that do not fit the neck.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        detector: Literal["fcos", "faster-rcnn", "deformable-detr"] = "fcos",
        neck: Literal["single", "fpn"] = "single",
        entropy: Literal["weighted", "plain"] | None = "weighted",
        alpha: float = 0.1,
        gamma: float = 6.0,
        tau1: float = 0.3,
        tau2: float = 0.3,
        detach: bool = False,
        eta: float = 1.0,
        classifier: Localizer | None = None,
        freeze_backbone: bool = False,
        width: int = 256,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, classes, classifier, freeze_backbone)
        check_choice("WEND", "detector", detector, DETECTORS)
        check_choice("WEND", "neck", neck, ("single", "fpn"))
        check_choice("WEND", "entropy", entropy, ("weighted", "plain", None))
        if not 0 <= tau2 <= tau1 <= 1:
            raise RecipeError(f"the entropy needs 0 <= tau2 <= tau1 <= 1, not tau2 = {tau2} and tau1 = {tau1}")
        self.entropy, self.eta = entropy, eta
        self.weights: dict[str, Any] = {"alpha": alpha, "gamma": gamma, "tau1": tau1, "tau2": tau2, "detach": detach}
        stages = list(backbone.channels)
        self.stages = stages if neck == "fpn" or detector == "deformable-detr" else stages[-1:]
        channels, strides = ([table[s] for s in self.stages] for table in (backbone.channels, backbone.stride))
        self.pyramid = _pyramid(channels, strides, width, detector) if neck == "fpn" else None
        channels = channels if self.pyramid is None else [width] * len(channels)
        try:
            self.detector = DETECTORS[detector](channels, strides, **(options or {}))
        except TypeError as error:
            raise RecipeError(f"the options {options} make no detector {detector!r}: {error}") from error

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the detector reads: Float[B,C,h,w], fine maps first."""
        found = self.backbone(images)
        read = {stage: found[stage].float() for stage in self.stages}
        return [m.float() for m in (read if self.pyramid is None else self.pyramid(read)).values()]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of L_sup times eta, and `entropy`, as far as there is one (eq. 4)."""
        boxes = [solid(boxes) for boxes in batch["pseudo_boxes"]]
        supervised, p = self.detector.losses(self.maps(batch["image"]), batch["image"], boxes)
        losses = {name: self.eta * loss for name, loss in supervised.items()}
        if self.entropy == "plain":
            losses["entropy"] = binary_entropy(p).mean()
        if self.entropy == "weighted":
            losses["entropy"] = weighted_entropy(p, **self.weights)
        return losses

    def new_parts(self) -> list[nn.Module]:
        """The pyramid and the detector, but for its `slow` parameters."""
        quick = [
            p for name, p in self.detector.named_parameters() if not any(part in name for part in self.detector.slow)
        ]
        return [nn.ParameterList(quick), *([] if self.pyramid is None else [self.pyramid])]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Boxes in pixels of the pictures, best first, and their scores; the classifier's logits.

        Nothing is too unsure to be given, so that there is a most confident box to measure. How many boxes count is
        for the protocol to say (`max_boxes`): of hundreds some hit by chance.
        """
        with in_eval_mode(self):
            found = self.detector.detect(self.maps(images), images)
        boxes, scores = ([one[part] for one in found] for part in (0, 1))
        return Localization(self.logits(images), boxes=boxes, scores=scores)


def _pyramid(channels: list[int], strides: list[int], width: int, detector: str) -> FeaturePyramidNetwork:
    if detector == "deformable-detr":
        raise RecipeError("Deformable DETR reads the backbone's maps itself: leave out neck: fpn")
    if any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
        raise RecipeError(f"a pyramid needs maps of which each halves the one before; these have strides {strides}")
    return FeaturePyramidNetwork(channels, width)
