"""Text distillation: every patch learns to say the name of the object it belongs to.

TeD-Loc (Murtaza et al., 2025) reads pictures with a frozen encoder. A decoder makes of its tokens one vector z_p at
each place p of a grid, and g(z_p) in [0,1] says whether the place belongs to the object. Class k has a frozen text
embedding t_k, orthogonal to the others (`wsol_lib.text`). Seeds drawn from the map of a teacher (`pseudo.otsu_seeds`)
say of some places that they are foreground, W+, and of as many that they are background, W-. With the image label y:

    L_KD = mean over p in W+ of CE(y, <z_p, t_k>)     a foreground patch points to its name (eq. 1)
    P_CL = mean over p in W+ and W- of CE(seed of p, g(z_p))     g learns from the seeds (eq. 2)
    h    = sum over all p of a_p z_p,   a_p = g(z_p) / sum_j g(z_j)     the picture as g sees it (eq. 3)
    I_CL = CE(y, <h, t_k>)     what g selects must tell the class (eq. 4)
    L    = lambda1 L_KD + lambda2 P_CL + lambda3 I_CL     (eq. 5)

CE over classes is that of the softmax over k. Eq. 4 reaches g through a_p, at every place, seed or not. The picture is
classified by <h, t_k>, and there are two maps: g(z_p), and <z_p, t_c> for the class c that was found. Neither needs a
teacher or a text encoder any more.

The decoder has the blocks of the group's earlier work. Each of L doubles the grid (nearest neighbour) and has two 3x3
convolutions with batch norm and ReLU; before them a 1x1 convolution narrows the tokens, after them one widens them to
the d of the texts. With L = 0 there is the last alone, and z is a linear function of the tokens.

No code could be read, so this is a reconstruction. Two more things are decided here. Eq. 1 is printed as a sum: a mean
does not depend on how many seeds were drawn, and lambda1 takes up the factor. And z is used at the length it has. The
paper has no temperature; with unit vectors, and no scale, the logits lie in [-1,1], and with orthonormal anchors the
cross-entropy of K classes could not fall below ln(1 + (K-1) exp(-sqrt(K/(K-1)))), which is 4.30 for 200.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol_lib import maps
from wsol_lib.backbones import Backbone, in_eval_mode
from wsol_lib.data.dataset import WsolDataset
from wsol_lib.distributed import global_mean, key
from wsol_lib.pseudo import otsu_seeds
from wsol_lib.text import Anchors, class_anchors, embed_classes
from wsol_lib.types import Batch, Frozen, Localization, Localizer, RecipeError, check_choice

UPSCALES = (1, 2, 4, 8, 16)
Route = Literal["g", "anchors"]


def expected_embedding(z: Tensor, g: Tensor) -> Tensor:
    """h = sum_p a_p z_p with a_p = g_p / sum_j g_j (eq. 3): the mean of z under the foreground, a soft selection.

    It does not change when all g of a picture are scaled, and a place with g = 0 has no part in it. Gradients flow into
    z and g. The sum over g is at least the machine epsilon of its type, so that h is 0 where g is 0 everywhere.

    Args:
        z: Float[B,P,d], of each of the P places.
        g: Float[B,P] in [0,1].

    Returns:
        Float[B,d].
    """
    total = g.sum(1, keepdim=True).clamp(min=torch.finfo(g.dtype).eps)  # [B,1]
    return torch.einsum("bp,bpd->bd", g / total, z)


def distillation_loss(z: Tensor, anchors: Tensor, label: Tensor, foreground: Tensor) -> Tensor:
    """L_KD (eq. 1): cross-entropy of the image label against <z_p, t_k>, at the places that are sampled foreground.

    These are gathered first, n in all, so that there are [n,K] logits and never [B,P,K]. Other places get no gradient.

    Args:
        z: Float[B,P,d], of any length.
        anchors: t, Float[K,d].
        label: y, Int[B].
        foreground: W+, Bool[B,P].

    Returns:
        The scalar mean in nats over the n places of the batch; with several processes over those of all, and the same
        on every one. 0 where there is none.
    """
    image, place = foreground.nonzero(as_tuple=True)  # [n], [n]
    logits = z[image, place] @ anchors.T  # [n,K]
    return global_mean(F.cross_entropy(logits, label[image], reduction="none"))


def patch_loss(g: Tensor, pseudo: Tensor) -> Tensor:
    """P_CL (eq. 2): cross-entropy of g against the seeds, -ln g at foreground and -ln(1 - g) at background.

    Other places get no gradient. Where g is wrong beyond doubt (0 at foreground, 1 at background) the loss is large and
    finite, and the gradient 0.

    Args:
        g: Float[B,P] in [0,1].
        pseudo: Int[B,P]: 1 in W+, 0 in W-, -1 elsewhere.

    Returns:
        The scalar mean in nats over the seeds of both kinds; with several processes over those of all, and the same on
        every one. 0 where there is none.
    """
    right = torch.where(pseudo == 1, g, 1 - g)[pseudo >= 0]  # [n], the probability of what the seed says
    return global_mean(-right.clamp(min=torch.finfo(g.dtype).tiny).log())


def up_block(width: int) -> nn.Sequential:
    """A grid to one twice as wide and high: nearest neighbour, then twice a 3x3 convolution, batch norm and ReLU."""
    layers = [(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(nn.Upsample(scale_factor=2), *layers[0], *layers[1])


def decoder(channels: int, width: int, embedding: int, upscale: int) -> nn.Sequential:
    """Tokens Float[B,C,h,w] to z, Float[B,d,S,S'] on a grid `upscale` times finer.

    Args:
        channels: C.
        width: channels inside.
        embedding: d.
        upscale: one of `UPSCALES`.

    Raises:
        RecipeError: it is none of these.
    """
    if upscale not in UPSCALES:
        raise RecipeError(f"upscale is one of {', '.join(map(str, UPSCALES))}, not {upscale}")
    if upscale == 1:
        return nn.Sequential(nn.Conv2d(channels, embedding, 1))
    blocks = [up_block(width) for _ in range(UPSCALES.index(upscale))]
    return nn.Sequential(nn.Conv2d(channels, width, 1), *blocks, nn.Conv2d(width, embedding, 1))


class TeDLoc(Localizer):
    """Text distilled into patches: it names what a picture shows by what lies under its own foreground map.

    Args:
        backbone: the encoder, with its deepest stage as tokens. It is frozen, and not in the checkpoint.
        anchors: t, Float[K,d], frozen; they are in the checkpoint.
        upscale: how many times finer the grid of z is than that of the tokens, one of `UPSCALES`.
        width: channels inside the decoder.
        lambdas: lambda1 to lambda3, the prices of L_KD, P_CL and I_CL; what costs 0 is not computed.
        seeds, top, low, threshold: of `pseudo.otsu_seeds`, of each picture and step.
        redraw: draw seeds anew in each step; False: of a picture always those that it had first.
        route: which of the two maps `localize` draws: "g", which knows no class, or "anchors".

    Raises:
        RecipeError: no such upscale or route, or not three prices.
    """

    needs = ("pseudo_maps",)
    anchors: Tensor  # [K,d]

    def __init__(
        self,
        backbone: Backbone,
        anchors: Tensor,
        *,
        upscale: int = 1,
        width: int = 128,
        lambdas: Sequence[float] = (1.0, 1.0, 1.0),
        seeds: int = 8,
        top: float = 1.0,
        low: float = 0.3,
        threshold: Literal["otsu"] | float = "otsu",
        redraw: bool = True,
        route: Route = "g",
    ) -> None:
        super().__init__()
        check_choice("TeDLoc", "route", route, get_args(Route))
        if len(lambdas) != 3:
            raise RecipeError(f"lambdas are three prices, of L_KD, P_CL and I_CL, not {list(lambdas)}")
        self.lambdas, self.redraw, self.route = tuple(lambdas), redraw, route
        self.sample = partial(otsu_seeds, count=seeds, top=top, low=low, threshold=threshold)
        self.register_buffer("anchors", anchors.detach().float())
        self.classes, embedding = anchors.shape
        self.decoder = decoder(list(backbone.channels.values())[-1], width, embedding, upscale)
        self.g = nn.Conv2d(embedding, 1, 1)
        self.encoder = Frozen(backbone)

    @classmethod
    def from_data(
        cls,
        data: WsolDataset,
        *,
        backbone: Backbone,
        text: str = "mini",
        template: str = "a picture of a {}",
        anchors: Anchors = "auto",
        **options: Any,
    ) -> TeDLoc:
        """With anchors from the class names of a data set.

        Args:
            text, template: of `text.embed_classes`.
            anchors: kind of `text.class_anchors`.
            **options: as for the constructor.
        """
        return cls(backbone, class_anchors(embed_classes(data, text, template), anchors), **options)

    @property
    def uses_labels(self) -> bool:  # type: ignore[override]
        """Whether the map is that of a label: on the route of the anchors."""
        return self.route == "anchors"

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """z and g of pictures Float[B,3,H,W] in [0,1].

        Returns:
            (z Float[B,d,S,S'], g Float[B,S,S'] in [0,1]), in single precision.
        """
        with torch.no_grad():
            found = self.encoder(images)  # stage -> [B,C,h,w]
        z = self.decoder(list(found.values())[-1])  # [B,d,S,S']
        return z.float(), self.g(z)[:, 0].float().sigmoid()

    def draw(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """Seeds Int[B,S,S'] of a batch on a grid, from its `pseudo_maps`."""
        cam = F.adaptive_avg_pool2d(batch["pseudo_maps"][:, None].float(), grid)[:, 0]  # [B,S,S']
        if self.redraw:
            return self.sample(cam)
        generators = [torch.Generator().manual_seed(key(i, "seeds")) for i in batch["index"].tolist()]
        return torch.cat([self.sample(one, generator=own) for one, own in zip(cam.split(1), generators, strict=True)])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`distillation`, `patches` and `pooled`: L_KD, P_CL and I_CL times their prices, as far as they have one."""
        z, g = self.decode(batch["image"])
        seeds = self.draw(batch, (g.shape[1], g.shape[2])).flatten(1)  # [B,P]
        z, g, label = z.flatten(2).transpose(1, 2), g.flatten(1), batch["label"]  # [B,P,d], [B,P], [B]
        terms = {
            "distillation": lambda: distillation_loss(z, self.anchors, label, seeds == 1),
            "patches": lambda: patch_loss(g, seeds),
            "pooled": lambda: F.cross_entropy(expected_embedding(z, g) @ self.anchors.T, label),
        }
        return {name: price * terms[name]() for name, price in zip(terms, self.lambdas, strict=True) if price}

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """<h, t_k>, and on the grid of z the map g, or that of the anchor of each label or of the predicted class.

        Neither the text encoder nor the teacher of the seeds is asked.
        """
        with in_eval_mode(self):
            z, g = self.decode(images)
        h = expected_embedding(z.flatten(2).transpose(1, 2), g.flatten(1))  # [B,d]
        logits = h @ self.anchors.T  # [B,K]
        if self.route == "g":
            return Localization(logits, g)
        return Localization(logits, maps.cam(z, self.anchors, logits.argmax(1) if labels is None else labels))
