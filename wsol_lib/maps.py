"""Score maps as pure functions of activations, class weights and gradients.

Symbols as in the papers: `A` are the activations of one layer, `y` the logit of one class, `w` the weights of a linear
classifier over global average pooling. Nothing here is normalised or resized except by `normalize` and `resize`; the
ReLU is applied where the paper has one.

| function | paper |
|---|---|
| `cam` | Zhou et al., "Learning Deep Features for Discriminative Localization", 2016, eq. 2 |
| `grad_cam` | Selvaraju et al., "Grad-CAM", 2017, eq. 1 and 2 |
| `grad_cam_pp` | Chattopadhay et al., "Grad-CAM++", 2018, the closed form for an exponential score |
| `xgrad_cam` | Fu et al., "Axiom-based Grad-CAM", 2020 |
| `layer_cam` | Jiang et al., "LayerCAM", 2021 |
| `hires_cam` | Draelos and Carin, "HiResCAM", 2020 |
| `score_cam` | Wang et al., "Score-CAM", 2020 |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _weighted(activations: Tensor, weights: Tensor) -> Tensor:
    """Sum over channels of each activation map times its weight: Float[B,C,h,w], Float[B,C] -> Float[B,h,w]."""
    return torch.einsum("bchw,bc->bhw", activations, weights)


def gradients(scores: Tensor, activations: Tensor) -> Tensor:
    """Gradient of each image's score by its activations, for the whole batch in one pass.

    The scores are summed before the pass. Images do not meet inside a network in eval mode, so the gradient of the sum
    by the activations of image b is the gradient of score b alone. No `.grad` is written, and the graph is freed.

    Args:
        scores: Float[B], one logit an image, computed from `activations` with gradients enabled.
        activations: Float[B,C,h,w], a tensor on the way to the scores.

    Returns:
        Float[B,C,h,w].

    Raises:
        ValueError: the scores do not depend on these activations.
    """
    gradient = None
    if scores.requires_grad and activations.requires_grad:
        (gradient,) = torch.autograd.grad(scores.sum(), activations, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "the scores do not depend on these activations: take them from a layer that lies on the way to the "
            "classifier, with gradients enabled, and compute the scores from that very tensor"
        )
    return gradient


def cam(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Class activation map: `M[b] = sum_k w[label_b, k] A[b, k]` (Zhou et al., eq. 2). No bias, no ReLU.

    The mean of the map, plus the bias, is the logit of the class when the classifier is linear over average pooling.

    Args:
        features: Float[B,C,h,w], what the classifier pools.
        weight: Float[K,C] of the linear classifier.
        labels: Int[B], the class whose map is drawn.

    Returns:
        Float[B,h,w], any range.
    """
    return _weighted(features, weight[labels])


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: `ReLU(sum_k a_k A_k)` with `a_k` the mean gradient of channel k (Selvaraju et al., eq. 1 and 2).

    At the layer that a linear classifier pools the gradient is `w / (h w)` everywhere, so the map is CAM's positive
    part divided by `h w`.

    Args:
        activations, gradients: Float[B,C,h,w].

    Returns:
        Float[B,h,w], not negative.
    """
    return _weighted(activations, gradients.mean((2, 3))).relu()


def grad_cam_pp(activations: Tensor, gradients: Tensor, eps: float = 1e-6) -> Tensor:
    """Grad-CAM++: weights `sum_ij alpha ReLU(g)`, `alpha = g^2 / (2 g^2 + g^3 sum_ij A)` (Chattopadhay et al.).

    Powers of the gradient stand for higher derivatives, which holds for `exp(y)` in a network of ReLUs.

    Args:
        activations, gradients: Float[B,C,h,w].
        eps: added to the denominator, as public code does; 0 gives the published formula. It is not negligible:
            one entry of the gradient at a 7x7 layer is about 1e-3, so `g^2` is about `eps`.

    Returns:
        Float[B,h,w], not negative.
    """
    total = activations.sum((2, 3), keepdim=True)  # [B,C,1,1]
    denominator = 2 * gradients**2 + total * gradients**3 + eps
    alpha = torch.where(gradients != 0, gradients**2 / denominator, 0)  # [B,C,h,w]
    return _weighted(activations, (alpha * gradients.relu()).sum((2, 3))).relu()


def xgrad_cam(activations: Tensor, gradients: Tensor, eps: float = 1e-7) -> Tensor:
    """XGrad-CAM: each channel's gradient is averaged with its activations as weights (Fu et al.).

    Args:
        activations, gradients: Float[B,C,h,w].
        eps: added to the sum of a channel, so that a silent channel gets weight 0.

    Returns:
        Float[B,h,w], not negative.
    """
    weights = (gradients * activations).sum((2, 3)) / (activations.sum((2, 3)) + eps)  # [B,C]
    return _weighted(activations, weights).relu()


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: `ReLU(sum_k ReLU(g_k) A_k)`, a weight for every place of every channel (Jiang et al.).

    Args:
        activations, gradients: Float[B,C,h,w].

    Returns:
        Float[B,h,w], not negative.
    """
    return (gradients.relu() * activations).sum(1).relu()


def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: `ReLU(sum_k g_k A_k)`, the gradient is not averaged (Draelos and Carin).

    Where only linear layers follow, the sum before the ReLU adds up to the logit without its bias.

    Args:
        activations, gradients: Float[B,C,h,w].

    Returns:
        Float[B,h,w], not negative.
    """
    return (gradients * activations).sum(1).relu()


@torch.no_grad()
def score_cam(
    activations: Tensor, score: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, chunk: int = 64
) -> Tensor:
    """Score-CAM: a channel weighs what the class scores when only its place is shown (Wang et al.).

    Each activation map is resized to the picture, scaled to [0,1] and multiplied with it; the softmax over channels of
    the class logits gives the weights. The paper subtracts the logit of a blank picture first, which the softmax
    cancels. It costs C forward passes an image and needs no gradient.

    Args:
        activations: Float[B,C,h,w].
        score: pictures Float[N,3,H,W] to logits Float[N,K].
        images: Float[B,3,H,W], as `score` takes them. Hidden places become 0, so give normalised pictures (0 is the
            mean colour) where the network takes such.
        labels: Int[B].
        chunk: how many masked pictures go through `score` at once.

    Returns:
        Float[B,h,w], not negative.
    """
    weights = [
        torch.cat([score(image * part)[:, label] for part in _masks(channels, image).split(chunk)])  # [C]
        for channels, image, label in zip(activations, images, labels.tolist(), strict=True)
    ]
    return _weighted(activations, torch.stack(weights).softmax(1)).relu()


def _masks(channels: Tensor, image: Tensor) -> Tensor:
    """The channels Float[C,h,w] of one picture as masks of its size, Float[C,1,H,W] in [0,1]; a constant hides all."""
    # Corners are aligned, as in the authors' code.
    grown = F.interpolate(channels[:, None], image.shape[-2:], mode="bilinear", align_corners=True)
    return normalize(grown[:, 0])[:, None]


def normalize(maps: Tensor) -> Tensor:
    """Each map from its minimum to 0 and its maximum to 1; a map that is constant or not finite becomes all zeros.

    Args:
        maps: Float[B,h,w].

    Returns:
        Float[B,h,w] in [0,1].
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    usable = span.isfinite() & (span > 0)  # [B,1,1]
    return torch.where(usable, (maps - low) / torch.where(usable, span, 1), 0)


def resize(maps: Tensor, size: int | tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Maps at another size.

    "bicubic" is the convolution kernel with a = -0.75 on half-pixel centres with repeated borders, without
    antialiasing: what OpenCV calls INTER_CUBIC and what the evaluation of the field uses. It overshoots: resize first
    and normalise after.

    Args:
        maps: Float[B,h,w].
        size: side in pixels, or (height, width).
        mode: "bicubic", "bilinear" (also half-pixel centres) or "nearest-exact".

    Returns:
        Float[B,H,W].
    """
    size = (size, size) if isinstance(size, int) else size
    corners = None if mode.startswith("nearest") else False
    return F.interpolate(maps[:, None], size, mode=mode, align_corners=corners)[:, 0]
