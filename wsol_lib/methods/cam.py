"""Class activation maps: a classifier that never saw a box, asked where it looks.

Zhou et al. 2016 train a classifier whose last two steps are a global average and a linear layer. With `f_k(x, y)` the
activation of channel k at a place, the logit of class c is, but for its bias, (their eq. 1)

    S_c = sum_k w[c,k] F_k,     F_k = mean over (x, y) of f_k(x, y)

(they write the sum for the mean, which is a constant factor). The two sums may be swapped: S_c is the mean of a map

    M_c(x, y) = sum_k w[c,k] f_k(x, y)     (their eq. 2)

which says how much each place speaks for class c. Nothing is trained for localization: the loss is cross-entropy on
image labels, and the map is read off.

Grad-CAM (Selvaraju et al. 2017) and its kin replace `w` by gradients of the logit, so that any layer of any classifier
has a map. At the pooled layer the gradient of S_c is `w[c,k] / (h w)` everywhere: CAM, Grad-CAM and HiResCAM draw the
same map up to that factor and the ReLU. They part at earlier layers. Equations of each: `wsol_lib.maps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsol_lib import maps
from wsol_lib.backbones import Backbone
from wsol_lib.data.dataset import WsolDataset, collate
from wsol_lib.types import Batch, Frozen, Localization, Localizer, RecipeError

GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": maps.grad_cam,
    "grad-cam++": maps.grad_cam_pp,
    "xgrad-cam": maps.xgrad_cam,
    "layer-cam": maps.layer_cam,
    "hires-cam": maps.hires_cam,
}
VARIANTS = ("cam", *GRADIENT, "score-cam", "mean-activation")


class PooledHead(nn.Linear):
    """A linear classifier over the global average of one stage's map, after dropout."""

    def __init__(self, stage: str, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(channels, classes)
        self.stage, self.dropout = stage, dropout

    def forward(self, found: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """Maps of the backbone to logits Float[B,K]."""
        pooled = found[self.stage].mean((2, 3))  # [B,C]
        return super().forward(F.dropout(pooled, self.dropout, self.training))


class OwnHead(nn.Module):
    """The backbone's own classifier, whatever it pools, cut to some of its classes."""

    indices: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)

    def forward(self, found: dict[str, Tensor]) -> Tensor:
        """Outputs of the backbone to logits Float[B,K]."""
        return found["logits"][:, self.indices]


class CAM(Localizer):
    """A classifier and the class activation map of its label, by one of the `VARIANTS`.

    Args:
        backbone: returns `stage`, and the deeper stage that the classifier pools, if they differ.
        classes: number K of classes.
        variant: "cam"; a gradient variant; "score-cam" (C forward passes an image); or "mean-activation", the mean over
            channels, which knows no class.
        stage: where the map is read. "cam" needs the stage that the classifier pools: the deepest of the backbone.
        dropout: of the pooled features, in training.
        freeze_backbone: only the head learns; the backbone stays in eval mode, out of the checkpoint.

    Raises:
        RecipeError: unknown variant, a stage the backbone does not return, or "cam" at a stage that is not pooled.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        variant: str = "cam",
        stage: str = "last",
        dropout: float = 0.0,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise RecipeError(f"there is no variant {variant!r} of CAM: choose one of {', '.join(VARIANTS)}")
        if stage not in backbone.channels:
            raise RecipeError(f"the backbone returns no map {stage!r}: create it with stages=({stage!r}, ...)")
        pooled = list(backbone.channels)[-1]
        self.variant, self.stage = variant, stage
        self.uses_labels = variant != "mean-activation"
        self.backbone = Frozen(backbone) if freeze_backbone else backbone
        self.head: nn.Module = PooledHead(pooled, backbone.channels[pooled], classes, dropout)
        self._check_pooled()

    def _check_pooled(self) -> None:
        """CAM's weights belong to one map only: the one that the classifier averages."""
        pooled = getattr(self.head, "stage", None)
        if self.variant == "cam" and pooled != self.stage:
            where = f"pools {pooled!r}" if pooled else "is the backbone's own"
            raise RecipeError(
                f"CAM cannot be read at {self.stage!r}, for the classifier {where}: take the pooled stage, or a "
                'gradient variant such as "layer-cam"'
            )

    @classmethod
    def pretrained(cls, backbone: Backbone, indices: Tensor | None = None, **options: Any) -> CAM:
        """A localizer with the backbone's pretrained classifier; nothing need be trained.

        Args:
            backbone: made with weights that bring a classifier. If `logits` is among its stages the network's own
                classifier is used as it is (class tokens too); else its weights are put over the mean of `last`.
            indices: Int[K], which of its classes are classes 0 to K-1 here; None keeps all.
            **options: as for the constructor.

        Raises:
            CheckpointError: there is no pretrained classifier, or it does not average the map `last`.
            RecipeError: as for the constructor.
        """
        own = "logits" in backbone.stages
        weight, bias = backbone.classifier() if own else backbone.head()
        indices = torch.arange(len(weight)) if indices is None else indices
        model = cls(backbone, len(indices), **options)
        if own:
            model.head = OwnHead(indices)
        else:
            model.head.load_state_dict({"weight": weight[indices], "bias": bias[indices]})
        model._check_pooled()
        return model

    @classmethod
    def probed(cls, backbone: Backbone, data: WsolDataset, *, strength: float = 1.0, **options: Any) -> CAM:
        """A localizer with a frozen backbone whose head is fitted to the labels of `data` at once, without steps.

        The head is the logistic regression, with an L2 penalty, of the labels on the pooled features of the pictures
        as they are (no crops, no flips): a linear probe.

        Args:
            backbone: made with weights; it does not change.
            data: pictures of one size, with some of every class.
            strength: C of `sklearn.linear_model.LogisticRegression`; smaller is a stronger penalty.
            **options: as for the constructor.

        Raises:
            ValueError: a class has no picture.
        """
        absent = sorted(set(range(len(data.classes))) - set(data.labels.tolist()))
        if absent:
            raise ValueError(f"no picture of class {data.classes[absent[0]]!r} is there to fit its weights to")
        model = cls(backbone, len(data.classes), freeze_backbone=True, **options)
        features, labels = model._pooled(data)
        regression = LogisticRegression(C=strength, max_iter=2000).fit(features.numpy(), labels.numpy())
        weight, bias = torch.tensor(regression.coef_), torch.tensor(regression.intercept_)
        if len(weight) == 1:  # two classes share one row: the logit of the second minus that of the first
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        model.head.load_state_dict({"weight": weight, "bias": bias})
        return model

    @torch.no_grad()
    def _pooled(self, data: WsolDataset) -> tuple[Tensor, Tensor]:
        """Pooled features Float[N,C] of all pictures, and their labels Int[N]."""
        batches = DataLoader(data, batch_size=64, collate_fn=collate)
        stage = self.head.stage
        parts = [(self.network(batch["image"])[stage].mean((2, 3)), batch["label"]) for batch in batches]
        features, labels = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(labels)

    @property
    def network(self) -> Backbone:
        """The backbone, frozen or not."""
        return self.backbone.module if isinstance(self.backbone, Frozen) else self.backbone

    def classify(self, inputs: Tensor) -> Tensor:
        """Logits Float[B,K] of pictures Float[B,3,H,W] that are already normalised (`network.normalize`)."""
        return self.head(self.network.features(inputs))

    def logits(self, images: Tensor, network: Backbone, found: dict[str, Tensor]) -> Tensor:
        """Logits Float[B,K] of pictures Float[B,3,H,W], of which `network` has already `found` the maps.

        Another network's maps are of no use here: then this one's are made.
        """
        return self.head(found) if network is self.network else self.classify(self.network.normalize(images))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the image label: `classification`."""
        logits = self.classify(self.network.normalize(batch["image"]))  # [B,K]
        return {"classification": F.cross_entropy(logits, batch["label"])}

    def new_parts(self) -> list[nn.Module]:
        """The head."""
        return [self.head]

    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Logits and the map of each label, or of the predicted class, at the size of the stage's grid.

        Gradient variants switch gradients on for themselves, from the stage upwards only, also under `torch.no_grad`
        and `torch.inference_mode`; they leave no `.grad` and no graph behind.
        """
        with torch.inference_mode(False), torch.no_grad():
            inputs = self.network.normalize(images.clone() if images.is_inference() else images)
            found = self.network.features(inputs, leaf=self.stage if self.variant in GRADIENT else None)
            with torch.set_grad_enabled(self.variant in GRADIENT):
                logits = self.head(found)  # [B,K]
                chosen = logits.argmax(1) if labels is None else labels  # [B]
                score_maps = self._maps(inputs, found, logits, chosen)  # [B,h,w]
        return Localization(logits.detach(), score_maps.detach())

    def _maps(self, inputs: Tensor, found: dict[str, Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        activations = found[self.stage]  # [B,C,h,w]
        if self.variant == "cam":
            return maps.cam(activations, self.head.weight, labels)  # type: ignore[arg-type]
        if self.variant == "mean-activation":
            return activations.mean(1)
        if self.variant == "score-cam":
            return maps.score_cam(activations, self.classify, inputs, labels)
        scores = logits.gather(1, labels[:, None])[:, 0]  # [B]
        return GRADIENT[self.variant](activations.detach(), maps.gradients(scores, activations))
