"""Two teachers for one student: causal knowledge distillation (KD-CI-CAM, Shao et al.).

A network that is trained to classify well draws small maps, and one that draws whole objects classifies worse.
KD-CI-CAM trains one of each, both CI-CAMs, and has a third learn its logits from the first and its maps from the
second.

The teachers see their own foreground. The combined map H of `ci_cam`, up-sampled and cut at theta of its maximum, is a
mask of zeros and ones; the picture through it, and through its opposite, goes through the network and the classifier
once more, past the context pool. No gradient passes a comparison, so H learns nothing from these pictures.

Masked pictures are mostly grey, and batch norms that follow them fit whole pictures no longer: on a network with norms
everywhere the localization teacher then forgets names. So their running statistics follow whole pictures only.
The authors' code lets them follow both (`faithful_to="code"`); their VGG16 has no norms but in its blocks.

* The classification teacher must know the class from the foreground alone: CE + mu CE(fore) + eta mean(H).
* The localization teacher must know it from what the foreground has more of than the background (`difference_loss`):
  CE + beta (diff + aux) + delta mean(H).

CE stands for the cross-entropies of the two looks of CI-CAM; the student is judged by its second look alone.

The authors' code is not their paper in several places; `faithful_to` names the two readings, and the default is said at
each function. Not rebuilt: the colour augmentations of their scripts (RandAugment, jitter, PCA lighting), and what the
text of `ci_cam` says of their networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol_lib import distributed, maps
from wsol_lib.backbones import Backbone, running_statistics_kept
from wsol_lib.methods.ci_cam import CICAM, Reading, Rule, both_looks, combine
from wsol_lib.types import Batch, Frozen, RecipeError

NO_TEACHER, CLASSIFICATION, LOCALIZATION = range(3)  # values of the batch key `view`
LEAST = 1e-6  # of a difference of probabilities, before the logarithm


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float, faithful_to: Reading = "paper") -> Tensor:
    """How far the student's probabilities are from the teacher's, both softened by a temperature T (eq. 10).

    With p = softmax(logits / T): "paper" is the divergence KL(p_t || p_s) T^2, which is 0 with no gradient where both
    agree. "code" is what the released code computes, sum p_t (log p_t - p_s): a KL that was given p_s for log p_s. Its
    gradient by p_s is -p_t, whatever the student says.

    Args:
        student, teacher: logits Float[B,K]; none passes a gradient to the teacher.
        temperature: T.
        faithful_to: the reading.

    Returns:
        The mean over the pictures of all processes; 0 where there are none.
    """
    wanted = (teacher.detach().float() / temperature).log_softmax(1)  # [B,K]
    said = student.float() / temperature
    if faithful_to == "paper":
        each = F.kl_div(said.log_softmax(1), wanted, reduction="none", log_target=True).sum(1) * temperature**2  # [B]
    else:
        each = F.kl_div(said.softmax(1), wanted, reduction="none", log_target=True).sum(1)  # [B]
    return distributed.global_mean(each)


def map_distillation(
    student: Tensor, teacher: Tensor, temperature: float, faithful_to: Reading = "code", *, rescale: bool = False
) -> Tensor:
    """The mean squared distance of the student's class maps from the teacher's, both squashed (eqs. 14 and 15).

    "code" squashes with sigmoid(M / T). "paper" takes the softmax of M / T over all classes and places of a picture:
    its N = K h w entries lie near 1 / N, the loss far below 1 / N^2, and no gradient is left to speak of.

    Args:
        student, teacher: class maps Float[B,K,h,w]; none passes a gradient to the teacher.
        temperature: T.
        faithful_to: the reading.
        rescale: multiply the softmax by N, so that its entries have the mean 1; only for "paper".

    Returns:
        The mean over all entries of the pictures of all processes; 0 where there are none.
    """
    said, wanted = (cams.flatten(1).float() / temperature for cams in (student, teacher.detach()))  # [B,K h w]
    if faithful_to == "paper":
        scale = said.shape[1] if rescale else 1
        said, wanted = scale * said.softmax(1), scale * wanted.softmax(1)
    else:
        said, wanted = said.sigmoid(), wanted.sigmoid()
    return distributed.global_mean((said - wanted).square().mean(1))


def area_loss(heatmap: Tensor) -> Tensor:
    """The mean of a combined map Float[B,h,w], a scalar.

    The authors take it before or after up-sampling. Bilinear up-sampling by a whole factor keeps the mean, so the two
    are one.
    """
    return heatmap.float().mean()


def difference_loss(
    fore: Tensor, back: Tensor, logits: Tensor, labels: Tensor, faithful_to: Reading = "code"
) -> tuple[Tensor, Tensor]:
    """How well the class is told by what the foreground says more than the background does (eq. 20).

    "code" takes differences of logits, CE(f - b) and CE((f - b + o) / 2). "paper" takes those of probabilities,
    -ln (s_f - s_b)[y] and -ln ((s_f - s_b + s_o) / 2)[y], and has no value where the background is the more certain: a
    difference below 1e-6 counts as that, and there no gradient is left to mend it.

    Args:
        fore, back: logits Float[B,K] of the picture through the mask and through its opposite.
        logits: o, Float[B,K] of the whole picture, at the second look.
        labels: Int[B].
        faithful_to: the reading.

    Returns:
        (diff, aux), means over the batch, unweighted.
    """
    if faithful_to == "code":
        difference = fore - back  # [B,K]
        return F.cross_entropy(difference, labels), F.cross_entropy((difference + logits) / 2, labels)
    difference = fore.softmax(1) - back.softmax(1)  # [B,K]
    both = (difference, (difference + logits.softmax(1)) / 2)
    diff, aux = (F.nll_loss(certainty.clamp(min=LEAST).log(), labels) for certainty in both)
    return diff, aux


@torch.no_grad()
def foreground_mask(heatmap: Tensor, size: Sequence[int], theta: float) -> Tensor:
    """Where a combined map exceeds theta of its maximum, as zeros and ones without a gradient.

    Args:
        heatmap: H, Float[B,h,w], at least 0.
        size: (height, width) of the pictures.
        theta: in [0,1); 0 leaves out no more than the minimum.

    Returns:
        Float[B,1,height,width].
    """
    shown = maps.resize(heatmap, (size[0], size[1]), "bilinear")  # [B,H,W]
    return (shown > theta * shown.amax((1, 2), keepdim=True)).to(heatmap)[:, None]


def through(teacher: CICAM, inputs: Tensor, mask: Tensor) -> Tensor:
    """Logits Float[B,K] of normalised pictures Float[B,3,H,W] through a mask Float[B,1,H,W], past the pool."""
    with nullcontext() if teacher.faithful_to == "code" else running_statistics_kept(teacher):
        return teacher.head(teacher.network(inputs * mask))


class ClassificationTeacher(CICAM):
    """A CI-CAM that must name the class from its foreground alone.

    Args:
        backbone, classes, size, non_local, rate, rule: as for `CICAM`.
        theta: of the foreground's mask.
        foreground: mu, the price of CE(fore).
        area: eta, the price of the mean of H.
        faithful_to: of the pool, and of what batch norms follow; None is the default of the pool, and whole pictures.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        size: int,
        non_local: Sequence[str],
        theta: float = 0.08,
        foreground: float = 1.0,
        area: float = 0.04,
        rate: float = 0.01,
        rule: Rule = "ci_quadratic",
        faithful_to: Reading | None = None,
    ) -> None:
        super().__init__(
            backbone, classes, size=size, non_local=non_local, rate=rate, rule=rule, faithful_to=faithful_to
        )
        self.theta, self.foreground, self.area = theta, foreground, area

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`plain` and `enhanced` of CI-CAM, `foreground` and `area`."""
        inputs, labels = self.network.normalize(batch["image"]), batch["label"]  # [B,3,H,W], [B]
        seen = self.study(inputs, labels)
        heatmap = combine(seen.cams, seen.logits, self.rule)  # [B,h,w]
        fore = through(self, inputs, foreground_mask(heatmap, inputs.shape[-2:], self.theta))  # [B,K]
        return {
            **both_looks(seen, labels),
            "foreground": self.foreground * F.cross_entropy(fore, labels),
            "area": self.area * area_loss(heatmap),
        }


class LocalizationTeacher(CICAM):
    """A CI-CAM whose foreground must tell more of the class than its background does.

    Args:
        backbone, classes, size, non_local, rate, rule: as for `CICAM`.
        theta: of the foreground's mask.
        difference: beta, the price of both terms of `difference_loss`.
        area: delta, the price of the mean of H.
        faithful_to: of the pool, of `difference_loss` and of what batch norms follow; None is the default of each, and
            whole pictures.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        size: int,
        non_local: Sequence[str],
        theta: float = 0.0,
        difference: float = 0.5,
        area: float = 0.0,
        rate: float = 0.01,
        rule: Rule = "ci_quadratic",
        faithful_to: Reading | None = None,
    ) -> None:
        super().__init__(
            backbone, classes, size=size, non_local=non_local, rate=rate, rule=rule, faithful_to=faithful_to
        )
        self.theta, self.difference, self.area = theta, difference, area

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`plain` and `enhanced` of CI-CAM, `difference`, `auxiliary` and `area`."""
        inputs, labels = self.network.normalize(batch["image"]), batch["label"]  # [B,3,H,W], [B]
        seen = self.study(inputs, labels)
        heatmap = combine(seen.cams, seen.logits, self.rule)  # [B,h,w]
        mask = foreground_mask(heatmap, inputs.shape[-2:], self.theta)  # [B,1,H,W]
        fore, back = (through(self, inputs, part) for part in (mask, 1 - mask))  # [B,K] each
        diff, aux = difference_loss(fore, back, seen.logits, labels, self.faithful_to or "code")
        return {
            **both_looks(seen, labels),
            "difference": self.difference * diff,
            "auxiliary": self.difference * aux,
            "area": self.area * area_loss(heatmap),
        }


class KDCICAM(CICAM):
    """The student: a CI-CAM that learns logits from one frozen teacher and class maps from the other.

    The batch key `view` says for each picture who teaches it: 0 nobody, 1 the classification teacher, 2 the
    localization teacher. Cross-entropy is a mean over all pictures, each distillation one over its own.

    Args:
        backbone, classes, size, non_local, rate, rule: as for `CICAM`.
        classification_teacher, localization_teacher: trained CI-CAMs of any backbone with maps of the student's size,
            each with its own pool; they are frozen. None leaves the distillation out.
        alpha: the price of distillation; cross-entropy costs 1 - alpha.
        logit_temperature, map_temperature: T of `logit_distillation` and of `map_distillation`.
        faithful_to: of the pool and of both distillations; None is the default of each.

    Raises:
        RecipeError: a teacher has another number of classes or another size of maps.
    """

    needs = ("view",)

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        size: int,
        non_local: Sequence[str],
        classification_teacher: CICAM | None = None,
        localization_teacher: CICAM | None = None,
        alpha: float = 0.8,
        logit_temperature: float = 15.0,
        map_temperature: float = 15.0,
        rate: float = 0.01,
        rule: Rule = "ci_quadratic",
        faithful_to: Reading | None = None,
    ) -> None:
        super().__init__(
            backbone, classes, size=size, non_local=non_local, rate=rate, rule=rule, faithful_to=faithful_to
        )
        self.alpha, self.logit_temperature, self.map_temperature = alpha, logit_temperature, map_temperature
        self.classification_teacher = self._frozen(classification_teacher)
        self.localization_teacher = self._frozen(localization_teacher)

    def _frozen(self, teacher: CICAM | None) -> Frozen | None:
        if teacher is None:
            return None
        there, here = tuple(teacher.pool.pool.shape), tuple(self.pool.pool.shape)
        if there != here:
            raise RecipeError(
                f"a teacher's class maps are {list(there)} (classes, height, width) and the student's {list(here)}: "
                "give both the same data, size and stride"
            )
        return Frozen(teacher)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`classification`, and of the teachers that are there `logit_distillation` and `map_distillation`."""
        images, labels = batch["image"], batch["label"]  # [B,3,H,W], [B]
        seen = self.study(self.network.normalize(images), labels)
        losses = {"classification": (1 - self.alpha) * F.cross_entropy(seen.logits, labels)}
        if self.classification_teacher is not None:
            mine = batch["view"] == CLASSIFICATION  # [B]
            said, _ = taught(self.classification_teacher, images[mine])  # [b,K], perhaps of no picture
            loss = logit_distillation(seen.logits[mine], said, self.logit_temperature, self.faithful_to or "paper")
            losses["logit_distillation"] = self.alpha * loss
        if self.localization_teacher is not None:
            mine = batch["view"] == LOCALIZATION  # [B]
            _, drawn = taught(self.localization_teacher, images[mine])  # [b,K,h,w]
            loss = map_distillation(seen.cams[mine], drawn, self.map_temperature, self.faithful_to or "code")
            losses["map_distillation"] = self.alpha * loss
        return losses


@torch.no_grad()
def taught(teacher: Frozen, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits Float[B,K] and class maps Float[B,K,h,w] that a frozen CI-CAM gives pictures Float[B,3,H,W] in [0,1]."""
    cicam = teacher.module
    if not len(images):
        return images.new_zeros(0, cicam.classes), images.new_zeros(0, *cicam.pool.pool.shape)
    return cicam.answer(cicam.network.normalize(images))
