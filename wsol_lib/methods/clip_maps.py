"""Maps from language: where the patches of an image-and-text model agree with the name of a class.

CLIP embeds pictures and captions in one space of d dimensions. Of a picture, the class token is compared with captions
in training; its patches never are. The last block of the vision transformer takes tokens x and gives

    a = ln_1(x)     q, k, v = heads of W a     x' = x + W_o attention(q, k) v     out = x' + mlp(ln_2(x'))

and a patch p is embedded as the class token is, z_p = proj(ln_post(out_p)). With t_k the unit embedding of the text
of class k there are four maps, none of which needs training (and a fifth that asks no text):

* vanilla: M_k(p) = cos(z_p, t_k), the model as it is.
* SCLIP (Wang et al., ECCV 2024) changes the last attention alone, so that tokens take from those like themselves:
  attention = softmax(q q^T / sqrt(d_h)) + softmax(k k^T / sqrt(d_h)), whose rows sum to 2; d_h is the width of a head.
* NACLIP (Hajimiri et al., WACV 2025) has them take from their neighbours too: softmax(k k^T / sqrt(d_h) + omega) with
  omega(p, p') = exp(-|p - p'|^2 / (2 std^2)) between places of the grid and 0 in the class token's row and column.
  This is the "reduced" block: out = W_o attention v, no residual, no MLP. A layer scale, where a model has one, stays.
* CLIP-ES (Lin et al., CVPR 2023) asks what raises the score of the class against texts of backgrounds, by Grad-CAM at
  a = ln_1(x) of the last block, and spreads the answer along the model's own attention (`refine`).
* attention: where the class token looks, mean of heads and sum over all blocks, as in TS-CAM (`ts_cam.roll_up`).

What the papers' facts leave open for CLIP-ES, and what is done here:

* The softmax is over the classes that a picture shows and the backgrounds. A picture of ours shows one class, so its
  rivals are the backgrounds alone; `rivals="all"` adds the other classes.
* With l = own logit - logsumexp(rivals), the score is p = sigmoid(l), and its gradient is p (1 - p) times that of l.
  A positive factor of a whole picture is lost in the min-max, so l is differentiated: it does not vanish where p is
  rounded to 1.
* The mask of boxes falls on columns: what lies outside the boxes of the CAM does not spread, and may be reached. The
  boxes are half-open. The released code cuts the last row and column of the grid off boxes that reach them.
* Attention of the class token is cut away before columns and rows are normalised, columns first, three times. A model
  of fewer than 8 blocks gives what it has.

Pictures of another size than the model's get its position embeddings interpolated, bicubic with antialiasing, which is
what open_clip does with weights (CLIP-ES's code: bilinear).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn
from torch.func import functional_call

from wsol_lib import maps
from wsol_lib.boxes import box_at
from wsol_lib.clip import create
from wsol_lib.data.dataset import WsolDataset
from wsol_lib.methods.ts_cam import roll_up
from wsol_lib.text import class_embeddings
from wsol_lib.types import Batch, Frozen, Localization, Localizer, RecipeError, check_choice

Kind = Literal["vanilla", "sclip", "naclip", "clip-es", "attention"]
Rivals = Literal["background", "all"]
REFINING_BLOCKS = 8
BOX_THRESHOLD = 0.4
ROUNDS = 3


# --- the image tower


class Encoding(NamedTuple):
    """What an image tower makes of pictures: their embeddings, and the tokens before and after its last block."""

    image: Tensor  # [B,d]
    before: Tensor  # [B,1+N,D]
    after: Tensor  # [B,1+N,D]
    grid: tuple[int, int]  # rows and columns of the N patches


def image_tower(model: nn.Module) -> Any:
    """The vision transformer of a CLIP model.

    Raises:
        RecipeError: the model embeds pictures by something else, or its blocks cannot be read.
    """
    visual = getattr(model, "visual", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    attentions = [getattr(block, "attn", None) for block in blocks]
    if not (
        attentions
        and all(isinstance(attention, nn.MultiheadAttention) and attention.batch_first for attention in attentions)
        and getattr(visual, "class_embedding", None) is not None
        and getattr(visual, "proj", None) is not None
        and getattr(visual, "attn_pool", None) is None
    ):
        raise RecipeError(
            f"the image tower {type(visual).__name__} is no vision transformer of open_clip with torch's own attention "
            "and a plain projection of its tokens: choose a model such as ViT-B-16"
        )
    return visual


def patch_grid(visual: Any, images: Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of pictures Float[B,3,H,W].

    Raises:
        RecipeError: the patches do not fill the picture, or there is none.
    """
    (height, width), patch = images.shape[-2:], visual.patch_size
    rows, columns = height // patch[0], width // patch[1]
    if (rows * patch[0], columns * patch[1]) != (height, width) or not rows * columns:
        raise RecipeError(
            f"patches of {patch[0]} x {patch[1]} pixels do not fill pictures of {height} x {width}: "
            "resize them to multiples of a patch"
        )
    return rows, columns


def at_least_single(x: Tensor) -> Tensor:
    """Numbers in single precision, or in double if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def positions(visual: Any, grid: tuple[int, int]) -> Tensor:
    """Position embeddings Float[1+N,D] for a grid of patches; the class token's is not touched."""
    embedding: Tensor = visual.positional_embedding
    if grid == tuple(visual.grid_size):
        return embedding
    patches = at_least_single(embedding[1:]).T.unflatten(1, visual.grid_size)[None]  # [1,D,h0,w0]
    resized = F.interpolate(patches, grid, mode="bicubic", antialias=True)[0].flatten(1).T  # [N,D]
    return torch.cat([embedding[:1], resized.to(embedding)])


def encode(visual: Any, inputs: Tensor) -> Encoding:
    """The tower's own way from normalised pictures Float[B,3,H,W] to embeddings; the last block is watched."""
    seen: list[Tensor] = []
    grid = patch_grid(visual, inputs)
    here = {"positional_embedding": positions(visual, grid)}
    with visual.transformer.resblocks[-1].register_forward_hook(lambda _, given, out: seen.extend((given[0], out))):
        image = functional_call(visual, here, (inputs,))
    before, after = seen
    return Encoding(image[0] if isinstance(image, tuple) else image, before, after, grid)


def on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens Float[B,1+N,D] without the class token, on the grid: Float[B,D,h,w]."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def patch_features(visual: Any, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """z_p = proj(ln_post(out_p)) of tokens Float[B,1+N,D]: Float[B,d,h,w] in the space of texts, of any length."""
    return on_grid(visual.ln_post(tokens) @ visual.proj, grid)


def text_maps(features: Tensor, texts: Tensor) -> Tensor:
    """M_k(p) = cos(z_p, t_k).

    Args:
        features: z, Float[B,d,h,w].
        texts: t, Float[K,d].

    Returns:
        Float[B,K,h,w] in [-1,1].
    """
    return torch.einsum("bdhw,kd->bkhw", F.normalize(features, dim=1), F.normalize(texts, dim=1))


# --- SCLIP and NACLIP: another attention in the last block


def sclip_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(softmax(q q^T / sqrt(d_h)) + softmax(k k^T / sqrt(d_h))) v for Float[B,H,1+N,d_h], of the same shape."""
    return F.scaled_dot_product_attention(q, q, v) + F.scaled_dot_product_attention(k, k, v)


def neighbourhood(grid: tuple[int, int], std: float) -> Tensor:
    """omega: exp(-|p - p'|^2 / (2 std^2)) for places p, p' of a grid, 0 for the class token: Float[1+N,1+N]."""
    places = [torch.arange(side, dtype=torch.float32) for side in grid]
    rows, columns = ((-(line[:, None] - line).square() / (2 * std**2)).exp() for line in places)  # [h,h], [w,w]
    return F.pad(torch.kron(rows, columns), (1, 0, 1, 0))


def attend_anew(block: Any, x: Tensor, attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """What a block's attention adds to tokens Float[B,1+N,D], by another function of its own q, k and v."""
    own = block.attn
    qkv = F.linear(block.ln_1(x), own.in_proj_weight, own.in_proj_bias)  # [B,1+N,3D]
    q, k, v = qkv.unflatten(2, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # [B,H,1+N,d_h]
    return block.ls_1(own.out_proj(attention(q, k, v).transpose(1, 2).flatten(2)))


def sclip(block: Any, x: Tensor) -> Tensor:
    """Tokens Float[B,1+N,D] after SCLIP's last block: residual and MLP are kept."""
    x = x + attend_anew(block, x, sclip_attention)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def naclip(block: Any, x: Tensor, omega: Tensor) -> Tensor:
    """Tokens Float[B,1+N,D] after NACLIP's last block, which is its attention alone; omega as of `neighbourhood`."""
    omega = omega.to(x)
    return attend_anew(block, x, lambda q, k, v: F.scaled_dot_product_attention(k, k, v, attn_mask=omega))


# --- CLIP-ES: Grad-CAM of a score against backgrounds, spread along attention


def log_odds(logits: Tensor, background: Tensor, labels: Tensor, rivals: Rivals = "background") -> Tensor:
    """l of each label: its softmaxed score is sigmoid(l).

    Args:
        logits: Float[B,K] of the classes.
        background: Float[B,M] of the background texts.
        labels: Int[B].
        rivals: the label stands against the "background", or against "all" other classes too.

    Returns:
        Float[B].
    """
    own = logits.gather(1, labels[:, None])  # [B,1]
    others = logits.scatter(1, labels[:, None], -torch.inf) if rivals == "all" else logits[:, :0]
    return own[:, 0] - torch.cat([others, background], 1).logsumexp(1)


def attribute(block: Any, x: Tensor, score: Callable[[Tensor], Tensor], grid: tuple[int, int]) -> Tensor:
    """Grad-CAM at ln_1 of a block, each map from 0 to 1.

    Only this block is run, and nothing before it takes a gradient.

    Args:
        block: the last of the tower.
        x: tokens Float[B,1+N,D] that come to it.
        score: tokens Float[B,1+N,D] that it gives to Float[B].
        grid: of the patches.

    Returns:
        Float[B,h,w] in [0,1].
    """
    leaf = block.ln_1(x).detach().requires_grad_()  # [B,1+N,D]
    with torch.enable_grad(), block.ln_1.register_forward_hook(lambda *_: leaf):
        gradients = maps.gradients(score(block(x)), leaf)
    return maps.normalize(maps.grad_cam(on_grid(leaf.detach(), grid), on_grid(gradients, grid)))


@contextmanager
def attention_maps(blocks: Iterable[Any]) -> Iterator[list[Tensor]]:
    """While this is open, each block that runs appends its attention, Float[B,1+N,1+N], mean of the heads.

    Args:
        blocks: of `image_tower`.
    """
    found: list[Tensor] = []

    def ask(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {**named, "need_weights": True}

    with ExitStack() as stack:
        for attention in [block.attn for block in blocks]:
            stack.enter_context(attention.register_forward_pre_hook(ask, with_kwargs=True))
            stack.enter_context(attention.register_forward_hook(lambda _, __, out: found.append(out[1])))
        yield found


def affinity(attention: Tensor) -> Tensor:
    """A: attention with columns and rows that sum to 1, as nearly as three rounds bring it, made symmetric.

    Args:
        attention: Float[B,N,N], not negative.

    Returns:
        Float[B,N,N].
    """
    tiny = torch.finfo(attention.dtype).tiny
    for _ in range(ROUNDS):
        attention = attention / attention.sum(1, keepdim=True).clamp(min=tiny)
        attention = attention / attention.sum(2, keepdim=True).clamp(min=tiny)
    return (attention + attention.transpose(1, 2)) / 2


def box_mask(cam: Tensor) -> Tensor:
    """b: 1 inside the boxes around all that lies above .4 of the maximum of a map, else 0.

    Args:
        cam: Float[B,h,w] in [0,1].

    Returns:
        Float[B,h,w].
    """
    mask = torch.zeros_like(cam)
    for inside, one in zip(mask, cam, strict=True):
        for x0, y0, x1, y1 in box_at(one, BOX_THRESHOLD, all_components=True).tolist():
            inside[y0:y1, x0:x1] = 1
    return mask


def refine(cam: Tensor, attention: Tensor) -> Tensor:
    """Class-aware attention affinity: A^2 (b * cam), each map from 0 to 1.

    A is applied twice, so that A^2 is never made.

    Args:
        cam: Float[B,h,w] in [0,1].
        attention: between patches, Float[B,N,N].

    Returns:
        Float[B,h,w] in [0,1].
    """
    spread, inside = affinity(attention), (box_mask(cam) * cam).flatten(1)[..., None]  # [B,N,N], [B,N,1]
    return maps.normalize((spread @ (spread @ inside))[..., 0].unflatten(1, cam.shape[1:]))


# --- the method


def unit_texts(visual: Any, name: str, texts: Tensor) -> Tensor:
    """Embeddings of texts Float[n,d] with length 1, where the model is, in single precision or better.

    Raises:
        RecipeError: they are not of the width that the image tower projects to.
    """
    width = visual.proj.shape[1]
    if texts.ndim != 2 or texts.shape[1] != width:
        raise RecipeError(f"{name} must be embeddings of this model, Float[n,{width}], not {list(texts.shape)}")
    return F.normalize(at_least_single(texts.detach()).to(visual.proj.device), dim=1)


class ClipMaps(Localizer):
    """A frozen image-and-text model that names what a picture shows and points at it. Nothing is trained.

    Args:
        model: an open_clip model with a vision transformer, or one with the same interface. It is put in eval mode,
            and its parameters take no more gradients.
        texts: embeddings of the class names, Float[K,d], of any length.
        kind: which of the maps.
        background: embeddings of background texts, Float[M,d]; CLIP-ES alone looks at them.
        rivals: of `log_odds`, for CLIP-ES.
        gaussian_std: of NACLIP's `neighbourhood`, in patches.

    Raises:
        RecipeError: the model has no such transformer, the texts are not of its space, there is no class or no such
            choice, the Gaussian has no width, or CLIP-ES has no rival for a class.
    """

    texts: Tensor  # [K,d]
    background: Tensor  # [M,d]
    mean: Tensor  # [3,1,1]
    std: Tensor  # [3,1,1]

    def __init__(
        self,
        model: nn.Module,
        texts: Tensor,
        *,
        kind: Kind = "vanilla",
        background: Tensor | None = None,
        rivals: Rivals = "background",
        gaussian_std: float = 5.0,
    ) -> None:
        super().__init__()
        check_choice("ClipMaps", "kind", kind, get_args(Kind))
        check_choice("ClipMaps", "rivals", rivals, get_args(Rivals))
        visual = image_tower(model)
        self.register_buffer("texts", unit_texts(visual, "texts", texts))
        self.register_buffer(
            "background", unit_texts(visual, "background", texts[:0] if background is None else background)
        )
        self.kind, self.rivals, self.gaussian_std, self.classes = kind, rivals, gaussian_std, len(texts)
        self.uses_labels = kind != "attention"
        self._check()
        self.model = Frozen(model)
        for name, usual in {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}.items():
            colours = torch.tensor(getattr(visual, f"image_{name}", usual), device=visual.proj.device)
            self.register_buffer(name, colours.view(3, 1, 1), persistent=False)

    def _check(self) -> None:
        if not self.classes:
            raise RecipeError("ClipMaps needs the text of at least one class")
        if not self.gaussian_std > 0:
            raise RecipeError(
                f"the std of NACLIP's Gaussian must be above 0, in patches; this one is {self.gaussian_std}"
            )
        rivals = len(self.background) + (self.classes - 1 if self.rivals == "all" else 0)
        if self.kind == "clip-es" and not rivals:
            raise RecipeError(
                "CLIP-ES scores a class against other texts: give background texts, or several classes and rivals='all'"
            )

    @classmethod
    def from_data(
        cls,
        data: WsolDataset,
        *,
        clip: str = "mini",
        template: str = "a picture of a {}",
        background: Sequence[str] = (),
        **options: Any,
    ) -> ClipMaps:
        """Maps of the classes of a data set, by a model that `wsol_lib.clip` knows.

        Args:
            clip: its name, such as "mini" or "ViT-B-16/openai".
            template: a sentence with a place for the name of a class.
            background: whole sentences.
            **options: as for the constructor.
        """
        model = create(clip)
        texts = class_embeddings(data.classes, model.encode_text, template)
        behind = model.encode_text(background) if background else None
        return cls(model.model, texts, background=behind, **options)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.module.visual

    def normalize(self, images: Tensor) -> Tensor:
        """Pictures in [0,1] as the tower takes them: minus the mean, divided by the deviation, in its precision."""
        return ((images - self.mean) / self.std).to(self.visual.proj)

    def similarities(self, embeddings: Tensor, texts: Tensor) -> Tensor:
        """Cosines times the model's logit scale, of pictures Float[B,d] and unit texts Float[n,d]: Float[B,n]."""
        return self.model.module.logit_scale.exp() * F.normalize(embeddings.to(texts), dim=1) @ texts.T

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """None: there is nothing to train.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("ClipMaps has nothing to train, for its model is frozen: set epochs to 0")

    @torch.no_grad()
    def class_maps(self, images: Tensor) -> Tensor:
        """The `text_maps` of all classes, Float[B,K,h,w], of pictures Float[B,3,H,W] in [0,1].

        Raises:
            RecipeError: the kind is CLIP-ES, which draws one class at a time, or attention, which knows none; the
                patches do not fill the pictures.
        """
        if self.kind == "clip-es":
            raise RecipeError("CLIP-ES draws the map of one class at a time: call localize with its label")
        if self.kind == "attention":
            raise RecipeError("attention draws one map a picture, whatever the class: call localize")
        return text_maps(self._features(encode(self.visual, self.normalize(images))), self.texts)

    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Zero-shot logits, and the map of each label or of the predicted class at the size of the grid of patches.

        CLIP-ES switches gradients on for itself, in the last block only, also under `torch.no_grad` and
        `torch.inference_mode`; it leaves no `.grad` and no graph behind.

        Raises:
            RecipeError: a label is no class, or the patches do not fill the pictures.
        """
        with torch.inference_mode(False), torch.no_grad():
            with attention_maps(self._watched()) as attention:
                seen = encode(self.visual, self.normalize(images))
            logits = self.similarities(seen.image, self.texts)  # [B,K]
            chosen = logits.argmax(1) if labels is None else self._classes(labels)  # [B]
            if self.kind == "clip-es":
                return Localization(logits, self._clip_es(seen, attention, chosen))
            if self.kind == "attention":
                looked = roll_up([whole[:, :1] for whole in attention])[:, 1:]  # [B,N]
                return Localization(logits, looked.unflatten(1, seen.grid).to(self.texts))
            features = F.normalize(self._features(seen), dim=1)  # [B,d,h,w]
            return Localization(logits, maps.cam(features, self.texts, chosen))

    def _watched(self) -> Sequence[Any]:
        """The blocks whose attention is needed."""
        blocks = self.visual.transformer.resblocks
        return {"clip-es": blocks[-REFINING_BLOCKS:], "attention": blocks}.get(self.kind, ())

    def _classes(self, labels: Tensor) -> Tensor:
        if ((labels < 0) | (labels >= self.classes)).any():
            raise RecipeError(f"ClipMaps has texts of classes 0 to {self.classes - 1}, not of {labels.tolist()}")
        return labels.clone()  # one of inference mode could not be kept for the way back

    def _features(self, seen: Encoding) -> Tensor:
        """z, Float[B,d,h,w], in the precision of the texts."""
        block = self.visual.transformer.resblocks[-1]
        if self.kind == "sclip":
            tokens = sclip(block, seen.before)
        elif self.kind == "naclip":
            tokens = naclip(block, seen.before, neighbourhood(seen.grid, self.gaussian_std))
        else:
            tokens = seen.after
        return patch_features(self.visual, tokens, seen.grid).to(self.texts)

    def _clip_es(self, seen: Encoding, attention: list[Tensor], labels: Tensor) -> Tensor:
        def score(tokens: Tensor) -> Tensor:  # [B,1+N,D] -> [B]
            image = patch_features(self.visual, tokens, seen.grid).mean((2, 3))  # [B,d]
            logits, background = (self.similarities(image, texts) for texts in (self.texts, self.background))
            return log_odds(logits, background, labels, self.rivals)

        cam = attribute(self.visual.transformer.resblocks[-1], seen.before, score, seen.grid).to(self.texts)
        between = (reduce(add, attention) / len(attention))[:, 1:, 1:]  # [B,N,N], of patches
        return refine(cam, between.to(self.texts))
