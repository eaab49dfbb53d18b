"""C2AM: foreground and background told apart by contrast, without labels (Xie et al., 2022).

A small head on the feature map x says for each place how much it is foreground, P in (0,1). Each picture gives two
descriptors, divided by the size of the map and not by the sum of P,

    f = sum P x / (h w)        b = sum (1 - P) x / (h w)

and three terms compare them over a batch by their cosine s:

    NEG     = mean over i, j of  -ln(1 - s(b_i, f_j))                     foregrounds differ from backgrounds
    POS(f)  = mean over i, j of  -ln(s(f_i, f_j)) exp(-alpha rank_ij)     foregrounds are alike, the nearest most
    POS(b)  = the same of the backgrounds

rank_ij is the place of j among the pictures ordered by their likeness to i, and starts at -1 for i itself.

Nothing in the three terms tells P from 1 - P: they are the same for both. The authors binarise the map of **the first
picture of the last batch of the first epoch**, and take 1 - P from then on if the mean of its border is above a half.
One picture is a thin vote. Here every training picture votes each time it is seen, and the votes are kept in a buffer,
so that they are in the checkpoint. When they are counted changes no loss.

The authors train in steps of Conv2d and GroupNorm parameters only, so that every batch norm's weight and bias, the
head's among them, stays at its start. The head's norm then keeps the scores of a batch at mean 0 and variance 1: P
cannot become all foreground. And its ten times higher rate never reaches the head. See `faithful_to`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsol_lib import distributed
from wsol_lib.backbones import Backbone, in_eval_mode
from wsol_lib.methods.cam import CAM
from wsol_lib.types import Batch, Frozen, Localization, Localizer, RecipeError

LEAST, MOST = 0.0005, 0.9995  # cosines are cut to this range before the logarithm


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of every row of Float[N,C] with every row of Float[M,C], cut to [.0005, .9995]: Float[N,M]."""
    return (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).clamp(LEAST, MOST)


def negative_loss(background: Tensor, foreground: Tensor) -> Tensor:
    """NEG: the mean of -ln(1 - s(b_i, f_j)) over all pairs of Float[N,C] and Float[N,C]."""
    return -(1 - cosines(background, foreground)).log().mean()


def positive_loss(descriptors: Tensor, alpha: float = 0.25) -> Tensor:
    """POS: the mean of -ln(s_ij) exp(-alpha rank_ij) over all pairs of Float[N,C], each with itself among them.

    Args:
        alpha: how fast the weight falls from the nearest picture on. The authors' scripts take .05 for a supervised
            start and .75 for MoCo and DetCo.
    """
    likeness = cosines(descriptors, descriptors)  # [N,N]
    first = likeness.detach() + 2 * torch.eye(len(likeness), device=likeness.device)  # a picture leads its own order
    rank = first.sort(dim=1, descending=True, stable=True).indices.argsort(1) - 1  # [N,N], from -1
    return -(likeness.log() * (-alpha * rank).exp()).mean()


def split_descriptors(features: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """f and b, Float[B,C] each, of features Float[B,C,h,w] under P Float[B,h,w]: sums divided by h w."""
    f = (features * foreground[:, None]).mean((2, 3))
    return f, features.mean((2, 3)) - f


def contrast(features: Tensor, foreground: Tensor, alpha: float = 0.25) -> dict[str, Tensor]:
    """The three terms, `negative`, `foreground` and `background`, of a batch; the same for P and 1 - P.

    Among several processes a batch is what all of them see together, one part of it where steps are accumulated: each
    compares all descriptors, and gradients reach those of every rank.

    Args:
        features: Float[B,C,h,w], as many on each rank.
        foreground: P, Float[B,h,w] in [0,1].
        alpha: of `positive_loss`.
    """
    with torch.autocast(features.device.type, enabled=False):  # half precision cannot tell .9995 from 1
        f, b = (_of_all_ranks(part) for part in split_descriptors(features.float(), foreground.float()))  # [N,C]
        return {
            "negative": negative_loss(b, f),
            "foreground": positive_loss(f, alpha),
            "background": positive_loss(b, alpha),
        }


def _of_all_ranks(rows: Tensor) -> Tensor:
    """The rows Float[B,C] of every rank, one after another, with gradient: Float[world B,C]."""
    mine = torch.eye(distributed.world(), device=rows.device)[distributed.rank()]  # [world]
    return distributed.global_sum(mine[:, None, None] * rows).flatten(0, 1)


def joined(found: dict[str, Tensor]) -> Tensor:
    """The maps of a backbone as one, Float[B,C,h,w]; coarser ones resized bilinearly to the finest."""
    finest = max((part.shape[-2:] for part in found.values()), key=lambda size: size.numel())
    return torch.cat([F.interpolate(part, finest, mode="bilinear") for part in found.values()], 1)


def border_share(foreground: Tensor) -> Tensor:
    """Which part of the outermost ring of cells of P Float[B,h,w] is above a half: Float[B]."""
    high = (foreground > 0.5).float()
    inner = high[:, 1:-1, 1:-1]
    cells = high[0].numel() - inner[0].numel()
    return (high.sum((1, 2)) - inner.sum((1, 2))) / cells


class C2AM(Localizer):
    """A foreground map learned by contrast; it knows no class.

    Args:
        backbone: the maps of all its stages are brought to the size of the finest and joined. The paper has the last
            two of a ResNet-50 with `output_stride=16`: 3072 channels. None takes the classifier's, frozen.
        classes: number K of classes; kept for the checkpoint alone.
        classifier: frozen; gives the logits, and is no part of the loss.
        alpha: of `positive_loss`.
        freeze_backbone: only the head learns; the backbone stays in eval mode, out of the checkpoint.
        faithful_to: "code": weights and biases of batch norms do not learn; "paper", which knows no exception: they do.

    Raises:
        RecipeError: neither backbone nor classifier.
    """

    uses_labels = False
    border: Tensor  # [2]: sum of `border_share` over the training pictures seen, and how many

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        classes: int,
        classifier: CAM | None = None,
        alpha: float = 0.25,
        freeze_backbone: bool = False,
        faithful_to: Literal["paper", "code"] = "code",
    ) -> None:
        super().__init__()
        if backbone is None and classifier is None:
            raise RecipeError("C2AM needs a backbone, or a classifier whose backbone it takes")
        network = classifier.network if backbone is None else backbone  # type: ignore[union-attr]
        self.classes, self.alpha = classes, alpha
        self.backbone = Frozen(network) if freeze_backbone or backbone is None else network
        self.classifier = None if classifier is None else Frozen(classifier)
        width = sum(network.channels.values())
        self.head = nn.Sequential(nn.Conv2d(width, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())
        self.register_buffer("border", torch.zeros(2))
        self._votes: list[Tensor] = []
        if faithful_to == "code":
            for norm in [part for part in self.modules() if isinstance(part, _BatchNorm)]:
                norm.requires_grad_(False)

    @property
    def network(self) -> Backbone:
        """The backbone, frozen or not."""
        return self.backbone.module if isinstance(self.backbone, Frozen) else self.backbone

    def features(self, images: Tensor) -> Tensor:
        """The joined maps Float[B,C,h,w] of pictures Float[B,3,H,W] in [0,1]."""
        return joined(self.backbone(images))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`negative`, `foreground` and `background`; labels are not looked at."""
        features = self.features(batch["image"])  # [B,C,h,w]
        foreground = self.head(features)[:, 0]  # [B,h,w]
        if self.training:
            self._votes.append(border_share(foreground.detach()))
        return contrast(features, foreground, self.alpha)

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the votes of the whole batch, over all its parts and processes."""
        votes = torch.cat(self._votes)
        self._votes.clear()
        self.border += distributed.global_sum(torch.stack([votes.sum(), votes.new_tensor(len(votes))]))

    def new_parts(self) -> list[nn.Module]:
        """The head. The authors mean to give it ten times the rate; their code gives it the backbone's."""
        return [self.head]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """P of each picture, or 1 - P where most of the border was foreground in training; labels are not looked at."""
        with in_eval_mode(self):
            found = self.backbone(images)
            foreground = self.head(joined(found))[:, 0].float()  # [B,h,w]
        total, count = self.border
        logits = None if self.classifier is None else self.classifier.module.logits(images, self.network, found)
        return Localization(logits, 1 - foreground if total > 0.5 * count else foreground)
