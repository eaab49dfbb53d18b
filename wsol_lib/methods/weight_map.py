"""A mask that keeps the answer: a weight map learned from a frozen classifier, or from triplets, without any box.

A classifier f is trained on image labels and then frozen. A second network g draws a mask M = g(I), one number in (0,1)
for each pixel, and f sees the picture through it. What f still recognises must have been left visible; what the mask
hides without a change was not needed. Two ways to say "without a change":

Method I, classifier invariance (eq. 1): f must give the masked picture the probabilities that it gave the whole,

    L = D(f(I), f(I * M)) + lambda R(M)

with D the cross-entropy and R the mean of M. Without R the mask of ones is perfect; without D the mask of zeros is.

Method II, Siamese triplets (eqs. 2 to 4): f embeds pictures so that those of a class lie together. The foreground
J^f = M * I of an anchor must lie nearer to the whole anchor than its background J^b = (1 - M) * I does (inner), and
nearer to the foreground of a picture of its class than to that of another class (outer).

The authors' code could not be read: this is a reconstruction from the paper's text, and what the text leaves open is
said where it is decided.

The mask multiplies the **normalised** picture: what is removed becomes the mean colour, not black. g is a U-Net with
skips from a pretrained encoder: five blocks of up-sampling and two convolutions, a sigmoid at the end. It is trained
too long if it is trained to the end: the mask creeps from the object to the parts that f needs. The score S
(`completeness`, eq. 6) tells when, and needs no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol_lib.backbones import Backbone
from wsol_lib.boxes import box_at
from wsol_lib.methods.cam import CAM
from wsol_lib.types import Batch, Frozen, Localization, Localizer, RecipeError

EPS = 1e-12  # inside the root of a distance: its gradient at 0 is 0, not NaN
TAU = 0.1  # the box rule (eq. 5): what is below a tenth of the largest weight is background


def invariance_loss(logits: Tensor, masked_logits: Tensor, target: Literal["soft", "hard"] = "soft") -> Tensor:
    """How far the classifier's answer for the masked picture is from its answer for the whole one (D of eq. 1).

    Args:
        logits: Float[B,K] of the whole pictures, the target; no gradient flows into them.
        masked_logits: Float[B,K] of the masked pictures.
        target: "soft" keeps the vector of probabilities, so the least value is its entropy and not 0; "hard" keeps the
            predicted class only.

    Returns:
        The cross-entropy in nats, a mean over the batch.
    """
    kept = logits.detach().softmax(1) if target == "soft" else logits.argmax(1)
    return F.cross_entropy(masked_logits, kept)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances Float[B] (not squared) of the rows of two Float[B,D]; the gradient at 0 is 0.

    In single precision, whatever is given: half precision has no room for EPS, nor for the squares.
    """
    return ((a - b).float().square().sum(1) + EPS).sqrt()


def triplet_loss(anchor: Tensor, near: Tensor, far: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over the batch of max(|anchor - near| - |anchor - far| + margin, 0); all Float[B,D] (eq. 2)."""
    return (distance(anchor, near) - distance(anchor, far) + margin).clamp(min=0).mean()


def inner_triplet(anchor: Tensor, foreground: Tensor, background: Tensor, margin: float = 1.0) -> Tensor:
    """The foreground says what the picture is, the background does not (eq. 3).

    Args:
        anchor: Float[B,D], embeddings of whole pictures.
        foreground, background: Float[B,D], of the same pictures through M and through 1 - M.
        margin: by how much nearer the foreground must lie.
    """
    return triplet_loss(anchor, foreground, background, margin)


def outer_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0) -> Tensor:
    """Foregrounds of a class lie together, those of another class apart (eq. 4).

    Args:
        anchor, positive, negative: Float[B,D], embeddings of the foregrounds of a picture, of another one of its class,
            and of one of another class.
        margin: by how much nearer the positive must lie.
    """
    return triplet_loss(anchor, positive, negative, margin)


def completeness(mask: Tensor) -> Tensor:
    """The part S of a mask's weight that lies inside its own box (eq. 6): 1 for one compact piece, less for crumbs.

    The box is the paper's (eq. 5): weights below a tenth of the largest are set to zero, and the 8-connected piece with
    the largest contour is boxed. The mask is taken as it is, without min-max.

    Args:
        mask: Float[h,w] or Float[B,h,w], weights of at least 0.

    Returns:
        Float[] or Float[B] in [0,1]. All zero, or with a NaN: 0. A positive constant: 1, so a score to choose epochs by
        must refuse masks that cover everything.
    """
    if mask.ndim == 3:
        return torch.stack([completeness(one) for one in mask])
    shown = mask >= TAU * mask.max()  # [h,w]; no pixel where the maximum is NaN
    weight = torch.where(shown, mask, 0.0).float()  # sums of half precision overflow
    if not weight.sum() > 0:
        return weight.new_zeros(())
    x0, y0, x1, y1 = box_at(shown, 0.0)[0].tolist()
    return (weight[y0:y1, x0:x1].sum() / weight.sum()).clamp(max=1)  # two orders of summing may differ


class UpBlock(nn.Module):
    """A map made twice as large and mixed with the encoder's map of that size by two 3x3 convolutions.

    The paper has the norm after the last convolution, before the activation; that the first one has a norm and a ReLU
    too is the reading of the authors' later code. Widths are open there: here the first convolution keeps those of the
    encoder.

    Args:
        channels, skip: C and S of what comes in; S is 0 where the encoder has no map of that size.
        out: channels of what goes out, after `activation`.
    """

    def __init__(self, channels: int, skip: int, out: int, activation: nn.Module) -> None:
        super().__init__()
        width = skip or channels
        self.mix = nn.Sequential(
            nn.Conv2d(channels + skip, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.last = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), activation)

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
        """Float[B,C,h,w] to Float[B,out,*size]; the skip is Float[B,S,*size]."""
        x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
        return self.last(self.mix(x if skip is None else torch.cat([x, skip], 1)))


class MaskNetwork(nn.Module):
    """g: a U-Net on a pretrained encoder, from a picture to a weight in (0,1) for each pixel.

    One block for each stage of the encoder, coarse to fine. Each takes the encoder's map of its own resolution along;
    the last one, at the size of the picture, has none to take.

    Args:
        encoder: a backbone that returns its stages of strides 2, 4, 8, ...

    Raises:
        RecipeError: the encoder has fewer than two stages, or one does not halve the one before.
    """

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        strides = [encoder.stride.get(stage) for stage in encoder.stages]
        if len(strides) < 2 or strides != [2 ** (i + 1) for i in range(len(strides))]:
            raise RecipeError(
                f"the mask network needs an encoder with maps of strides 2, 4, 8, ...; {encoder.name} gives {strides}: "
                "ask its backbone for all of its stages (stage1, stage2, ...)"
            )
        self.encoder = encoder
        *skips, deepest = encoder.channels.values()
        inputs = [deepest, *reversed(skips)]
        self.decoder = nn.ModuleList(
            UpBlock(channels, skip, skip, nn.ReLU()) for channels, skip in zip(inputs, reversed(skips), strict=False)
        )
        self.decoder.append(UpBlock(inputs[-1], 0, 1, nn.Sigmoid()))

    def forward(self, images: Tensor) -> Tensor:
        """Pictures Float[B,3,H,W] in [0,1] to weights Float[B,H,W] in (0,1)."""
        *skips, x = self.encoder(images).values()
        for block, skip in zip(self.decoder, [*reversed(skips), None], strict=True):
            x = block(x, (images if skip is None else skip).shape[-2:], skip)
        return x[:, 0].float()  # [B,H,W]


class _Masking(Localizer):
    """What both methods share: the mask network, the frozen classifier that names the class, the box's map."""

    uses_labels = False

    def __init__(self, backbone: Backbone, classifier: CAM) -> None:
        super().__init__()
        self.mask = MaskNetwork(backbone)
        self.classifier = Frozen(classifier)

    def new_parts(self) -> list[nn.Module]:
        """The decoder of the mask network."""
        return [self.mask.decoder]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """The mask of each picture, whatever its class, and the frozen classifier's logits for the whole picture."""
        f = self.classifier.module
        return Localization(f.classify(f.network.normalize(images)), self.mask(images))


class WeightMap(_Masking):
    """Method I: the mask under which a frozen classifier does not change its mind (eq. 1).

    Args:
        backbone: encoder of the mask network, with all of its stages; not the classifier's own backbone, which freezes.
        classifier: f, trained on image labels; it is frozen and stays in eval mode.
        classes: number K of classes.
        area: lambda, the price of the mask's mean.
        target: of `invariance_loss`.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: CAM,
        classes: int,
        *,
        area: float = 1.0,
        target: Literal["soft", "hard"] = "soft",
    ) -> None:
        super().__init__(backbone, classifier)
        self.classes, self.area, self.target = classes, area, target

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`invariance` and `area`, as in eq. 1; labels are not looked at."""
        f = self.classifier.module
        inputs = f.network.normalize(batch["image"])  # [B,3,H,W]
        mask = self.mask(batch["image"])  # [B,H,W]
        with torch.no_grad():
            whole = f.classify(inputs)  # [B,K]
        masked = f.classify(inputs * mask[:, None])  # [B,K]
        return {"invariance": invariance_loss(whole, masked, self.target), "area": self.area * mask.mean()}


class TripletEmbedding(Localizer):
    """f of method II: pictures as points, those of a class nearer together than to others by a margin (eq. 2).

    Args:
        backbone: returns `last`; a linear layer follows its global average.
        classes: number K of classes; only kept, triplets need no logits.
        dimensions: D of the points.
        start: a classifier on the same network, with whose weights the backbone begins; the paper begins with ImageNet.
        margin: of the triplet loss.
        freeze_backbone: only the linear layer learns.

    Raises:
        RecipeError: the classifier has another network.
    """

    needs = ("positive", "negative")
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        start: CAM | None = None,
        dimensions: int = 200,
        margin: float = 1.0,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.margin = classes, margin
        if start is not None:
            try:
                backbone.network.load_state_dict(start.network.network.state_dict())
            except RuntimeError as error:
                raise RecipeError(
                    f"an embedding on {backbone.name} cannot start from a classifier on {start.network.name}: "
                    "give both stages one backbone"
                ) from error
        self.backbone = Frozen(backbone) if freeze_backbone else backbone
        self.project = nn.Linear(backbone.channels["last"], dimensions)

    @property
    def network(self) -> Backbone:
        """The backbone, frozen or not."""
        return self.backbone.module if isinstance(self.backbone, Frozen) else self.backbone

    def embed(self, inputs: Tensor) -> Tensor:
        """Normalised pictures Float[B,3,H,W] to points Float[B,D]."""
        return self.project(self.network.features(inputs)["last"].mean((2, 3)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`triplet`: eq. 2 on whole pictures."""
        images = torch.cat([batch["image"], batch["positive"], batch["negative"]])  # [3B,3,H,W]
        anchor, positive, negative = self.embed(self.network.normalize(images)).chunk(3)  # [B,D] each
        return {"triplet": triplet_loss(anchor, positive, negative, self.margin)}

    def new_parts(self) -> list[nn.Module]:
        """The linear layer."""
        return [self.project]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """The mean activation: a map that knows no class, for this f has no logits."""
        return Localization(maps=self.network(images)["last"].mean(1))


class SiameseWeightMap(_Masking):
    """Method II: the mask that tells foreground from background, and classes from one another (eqs. 3 and 4).

    Its f has no logits. As the paper's printed Top-1 accuracy is method I's, so is the class here: it comes from the
    same classifier.

    Args:
        backbone: encoder of the mask network, with all of its stages.
        embedding: f, trained on triplets; it is frozen and stays in eval mode.
        classifier: names the class, for Top-1 Loc; no part of the loss.
        classes: number K of classes.
        inner, outer, area: prices of the terms; the paper gives none for the two triplets. A term of price 0 is
            computed all the same, so that the steps of an ablation differ in nothing else.
        margin: of both triplets.
    """

    needs = ("positive", "negative")

    def __init__(
        self,
        backbone: Backbone,
        embedding: TripletEmbedding,
        classifier: CAM,
        classes: int,
        *,
        inner: float = 1.0,
        outer: float = 1.0,
        area: float = 1.0,
        margin: float = 1.0,
    ) -> None:
        super().__init__(backbone, classifier)
        self.embedding = Frozen(embedding)
        self.classes, self.inner, self.outer, self.area, self.margin = classes, inner, outer, area, margin

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`inner`, `outer` and `area`: three passes through g, one batch to its norms, and five through f an anchor."""
        f = self.embedding.module
        images = torch.cat([batch["image"], batch["positive"], batch["negative"]])  # [3B,3,H,W]
        inputs, masks = f.network.normalize(images), self.mask(images)[:, None]  # [3B,3,H,W], [3B,1,H,W]
        anchor, mask = inputs[: len(batch["image"])], masks[: len(batch["image"])]  # [B,...]
        with torch.no_grad():
            whole = f.embed(anchor)  # [B,D]
        background = f.embed(anchor * (1 - mask))  # [B,D]
        foreground, positive, negative = f.embed(inputs * masks).chunk(3)  # [B,D] each
        return {
            "inner": self.inner * inner_triplet(whole, foreground, background, self.margin),
            "outer": self.outer * outer_triplet(foreground, positive, negative, self.margin),
            "area": self.area * mask.mean(),
        }
