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

No code could be read, so this is a reconstruction. Two things are decided here. Eq. 1 is printed as a sum: a mean does
not depend on how many seeds were drawn, and lambda1 takes up the factor. And z is used at the length it has. The paper
has no temperature; with unit vectors, and no scale, the logits lie in [-1,1], and with orthonormal anchors the
cross-entropy of K classes could not fall below ln(1 + (K-1)/e), which is 4.31 for 200.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol_lib.distributed import global_mean


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
