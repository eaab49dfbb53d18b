"""Class names as vectors: what a text encoder says of K names, turned into anchors that are far from each other.

The names of the classes of one data set are alike, and so are their embeddings: between 1000 names of ImageNet the mean
cosine in CLIP is .65. TeD-Loc (Murtaza et al., 2025) makes them orthogonal before it learns from them. With T the
embeddings, one unit row a class, Float[K,d]:

| method | anchors | where | depends on the order of classes |
|---|---|---|---|
| qr | the rows of Q^T with T^T = Q R and diag R > 0: Gram-Schmidt (the paper) | K <= d | yes |
| lowdin | U V^T with T = U S V^T: of all orthonormal rows the nearest to T (Löwdin, 1950) | K <= d | no |
| frame | U V^T, rows scaled to length 1 | any K | no |

More than d orthogonal vectors do not exist in d dimensions. The columns of U V^T are orthonormal even then, which makes
its rows a *tight frame*: anchors that share the space evenly, with a mean square cosine near the least that there can
be, (K-d) / (d (K-1)), the Welch bound. It would be reached if all rows of U V^T had one length before they are scaled.
The paper has 1000 classes and does not say what it does there. A literal QR of T gives the same frame in another
rotation, farther from the text: for the names of ImageNet the mean cosine of an anchor with its text is .46 here, and
.31 there with diag R > 0; without that it may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wsol_lib.backbones import imagenet_indices
from wsol_lib.clip import TextEncoder, text_encoder
from wsol_lib.data.dataset import WsolDataset, imagenet_wnids
from wsol_lib.data.source import data_root
from wsol_lib.types import DataMissing, RecipeError, check_choice

Orthogonalization = Literal["qr", "lowdin", "frame", "auto"]
Anchors = Literal[Orthogonalization, "text", "random"]
IMAGENET = "imagenet-clip"  # a source of texts: CLIP's features of the names of ImageNet, from a file
IMAGENET_FILE = "clip-text/imagenet1k_vitb32_text_features.npy"
RESOLUTION = 1e-6  # singular values below this part of the largest are rounding of single precision


def _unit(rows: Tensor) -> Tensor:
    """Rows Float[K,d] scaled to length 1."""
    lengths = rows.norm(dim=1, keepdim=True)  # [K,1]
    usable = lengths.isfinite() & (lengths > 0)
    if not usable.all():
        k = int(usable.flatten().int().argmin())
        raise RecipeError(f"the embedding of class {k} has no direction: it is zero or not finite")
    return rows / lengths


def _check_independent(rows: Tensor) -> None:
    rank = int(torch.linalg.matrix_rank(rows, rtol=RESOLUTION))
    if rank < len(rows):
        k = int(torch.linalg.qr(rows.T).R.diagonal().abs().argmin())
        raise RecipeError(
            f"the embeddings of {len(rows)} classes have {rank} independent directions, and that of class {k} adds "
            "least to those before it: give classes with equal names different ones, or choose the method 'frame'"
        )


def _gram_schmidt(rows: Tensor) -> Tensor:
    """Independent rows Float[K,d], each less its part along those before it, as orthonormal rows Float[K,d]."""
    q, r = torch.linalg.qr(rows.T)  # [d,K], [K,K]
    return (q * torch.where(r.diagonal() < 0, -1, 1)).T  # LAPACK may turn a direction round


def _polar(rows: Tensor) -> Tensor:
    """U V^T of rows Float[K,d] = U S V^T, over the singular values that are not 0."""
    u, s, vt = torch.linalg.svd(rows, full_matrices=False)
    kept = s > RESOLUTION * s[0]
    return u[:, kept] @ vt[kept]


def orthogonal_anchors(embeddings: Tensor, method: Orthogonalization = "auto") -> Tensor:
    """The frozen text anchors of TeD-Loc: embeddings moved apart by one of the methods in the module's text.

    The norms of the embeddings do not matter. Work is done in float64 on the CPU. No gradient passes.

    Args:
        embeddings: Float[K,d], one row a class.
        method: "qr": the first row keeps its direction, later ones ever less. "lowdin": all give way alike; a rotation
            of the space, or another order of the classes, turns or reorders the anchors and does nothing else. "frame":
            what there is where K > d; for fewer classes it is "lowdin". Equal embeddings stay equal: such classes
            cannot be told apart. "auto": "qr" where K <= d, else "frame".

    Returns:
        Float[K,d], unit rows, row k for class k, with the type and device of `embeddings`.

    Raises:
        RecipeError: an unknown method; an embedding that is zero or not finite; for "qr" and "lowdin", K > d or
            embeddings that depend linearly on each other.
        ValueError: embeddings of another shape.
    """
    check_choice("orthogonal_anchors", "method", method, get_args(Orthogonalization))
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"embeddings are Float[K,d]; these have the shape {tuple(embeddings.shape)}")
    classes, width = embeddings.shape
    rows = _unit(embeddings.detach().cpu().double())
    if method == "frame" or (method == "auto" and classes > width):
        return _unit(_polar(rows)).to(embeddings)
    if classes > width:
        raise RecipeError(
            f"{classes} vectors cannot be orthogonal in {width} dimensions: choose the method 'frame', "
            f"or a text encoder with at least {classes} dimensions"
        )
    _check_independent(rows)
    return (_polar(rows) if method == "lowdin" else _gram_schmidt(rows)).to(embeddings)


def class_embeddings(names: Sequence[str], encoder: TextEncoder, template: str = "a photo of a {}") -> Tensor:
    """What an encoder says of each class: one sentence a name.

    Args:
        names: of K classes.
        encoder: sentences to Float[n,d]; see `clip.text_encoder`.
        template: a sentence with a place for the name.

    Returns:
        Float[K,d], rows of length 1, on the CPU.

    Raises:
        RecipeError: the template has no place for a name, or an embedding has no direction.
    """
    if "{}" not in template:
        raise RecipeError(f"the template {template!r} has no place for the name of a class: write {{}} there")
    with torch.no_grad():
        return _unit(encoder([template.format(name) for name in names]).detach().cpu().float())


def imagenet_embeddings(wnids: Sequence[str], root: str | Path | None = None) -> Tensor:
    """CLIP's (ViT-B/32) embeddings of the names of ImageNet classes, read from the folder of the data.

    Args:
        wnids: K WordNet ids such as "n02123045".
        root: as for `data.load`.

    Returns:
        Float[K,512], rows of length 1. Classes whose first names are equal have equal rows: 134 and 517 (crane), 264
        and 474 (cardigan), 638 and 639 (maillot).

    Raises:
        DataMissing: the file is not there.
        ValueError: an id is none of ImageNet's.
    """
    path = data_root(root) / IMAGENET_FILE
    if not path.is_file():
        raise DataMissing(f"there are no text features {path}: put the folder clip-text there, or set WSOL_DATA")
    features = np.load(path, allow_pickle=False).astype(np.float32)
    return _unit(torch.from_numpy(features)[imagenet_indices(wnids)])


def embed_classes(data: WsolDataset, text: str, template: str) -> Tensor:
    """Embeddings Float[K,d] of the class names of a data set.

    Args:
        text: a name that `clip.text_encoder` knows; or "imagenet-clip" (`imagenet_embeddings`, without a template).

    Raises:
        RecipeError: no such source; or "imagenet-clip" for classes that are none of ImageNet.
    """
    if text != IMAGENET:
        return class_embeddings(data.classes, text_encoder(text), template)
    return imagenet_embeddings(imagenet_wnids(data, f"text {IMAGENET!r}"))


def class_anchors(embeddings: Tensor, kind: Anchors = "auto") -> Tensor:
    """The anchors of TeD-Loc and its controls.

    Args:
        embeddings: Float[K,d].
        kind: a method of `orthogonal_anchors`; "text": the embeddings themselves; "random": nothing of the text but
            its shape, orthonormal rows of random directions (a frame where K > d), drawn from torch's generator.

    Returns:
        Float[K,d], unit rows.

    Raises:
        RecipeError: no such kind, and as for `orthogonal_anchors`.
    """
    check_choice("class_anchors", "kind", kind, get_args(Anchors))
    if kind == "text":
        return _unit(embeddings.detach())
    if kind == "random":
        return orthogonal_anchors(torch.randn(embeddings.shape))
    return orthogonal_anchors(embeddings, kind)
