"""Mini-CLIP: a model of pictures and words, small enough to be trained on scenes and their captions on a CPU.

CLIP (Radford et al., ICML 2021) learns from pairs of a picture and a sentence. One tower turns the picture into a
vector, the other the sentence, both of unit length, and the vectors of a pair are to be nearer than those of any other
pair of the batch. The towers here are open_clip's own classes at a small size, so whatever is built on a real CLIP of
open_clip fits: `encode_image`, `encode_text`, `logit_scale`, and the blocks of `visual`.

Captions of scenes repeat. Two pictures with the same sentence are no contrast, so a sentence shares its weight among
all pictures it is true of, as a caption of this batch:

    L = (CE(scale * V T^T, P) + CE(scale * T V^T, P)) / 2,   P_ij = [caption_i = caption_j] / how often caption_i stands
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

from wsol_lib.backbones import pack
from wsol_lib.data.dataset import WsolDataset
from wsol_lib.methods.clip_maps import ClipMaps, Kind
from wsol_lib.types import (
    Batch,
    CheckpointError,
    DataMissing,
    Localization,
    Localizer,
    RecipeError,
    check_choice,
    nearest,
)

Pool = Literal["tok", "avg"]
CONTEXT = 20  # words of a sentence, its two ends included
WORDS = (
    "a", "at", "backed", "beetle", "beetles", "belted", "billed", "blue", "cheeked", "collared", "crawling",
    "crested", "deer", "desert", "drifting", "dusk", "finned", "fish", "forest", "four", "gliding", "gold",
    "grazing", "heron", "herons", "horned", "in", "marsh", "meadow", "nosed", "ocean", "of", "picture", "plumed",
    "red", "resting", "saddled", "snouted", "snow", "spotted", "standing", "striped", "swimming", "tailed", "the",
    "three", "two", "violet", "wading", "waiting", "walking", "white", "winged", "with",
)  # fmt: skip


class WordTokenizer:
    """Sentences to numbers, one a word, between a start and an end; 0 fills up.

    As in CLIP the end has the highest number, because the text tower looks for it so. Hyphens and commas part words.
    """

    def __init__(self, words: Sequence[str] = WORDS, context: int = CONTEXT) -> None:
        self.numbers = {word: n for n, word in enumerate(words, 1)}
        self.start, self.end = len(words) + 1, len(words) + 2
        self.context = context

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.end + 1

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Int[B,context].

        Raises:
            RecipeError: a word is not known, or a sentence is too long.
        """
        return torch.tensor([self._row(text) for text in ([texts] if isinstance(texts, str) else texts)])

    def _row(self, text: str) -> list[int]:
        words = re.findall(r"[a-z]+", text.lower())
        strange = [word for word in words if word not in self.numbers]
        if strange:
            raise RecipeError(f"mini-CLIP has not learned the word {strange[0]!r}{nearest(strange[0], self.numbers)}")
        if len(words) + 2 > self.context:
            raise RecipeError(f"mini-CLIP reads at most {self.context - 2} words, not the {len(words)} of {text!r}")
        row = [self.start, *(self.numbers[word] for word in words), self.end]
        return row + [0] * (self.context - len(row))


def mini_clip(tokenizer: WordTokenizer, pool: Pool = "tok") -> Any:
    """An untrained open_clip.CLIP: six blocks of width 128 for pictures, three for sentences, vectors of 128 numbers.

    Pictures are 64 pixels wide and high, patches 8.

    Args:
        tokenizer: says how many words there are, and how long a sentence may be.
        pool: what embeds a picture: the class token ("tok", as in CLIP) or the mean of the patches ("avg").
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=6, width=128, head_width=32, patch_size=8, image_size=64, pool_type=pool)
    text = CLIPTextCfg(context_length=tokenizer.context, vocab_size=tokenizer.size, width=128, heads=4, layers=3)
    return CLIP(128, vision, text)


def save(path: Path, model: Any) -> None:
    """Write both towers as `pretrained` reads them: safetensors, matrices in half precision."""
    save_file(pack(model.state_dict()), path)


def pretrained(path: Path, pool: Pool = "tok") -> Any:
    """Mini-CLIP with weights that `save` wrote, in eval mode; `wsol_lib.clip` knows those of the book by name.

    Raises:
        CheckpointError: the file is damaged or of another model.
        DataMissing: there is no such file.
    """
    if not path.is_file():
        raise DataMissing(f"there are no weights {path}: run `python -m tools.pretrain {path.stem}`")
    model = mini_clip(WordTokenizer(), pool)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no mini-CLIP: {str(error).splitlines()[0]}") from error
    return model.eval()


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """L of the module's docstring, a scalar.

    Args:
        images: V, Float[B,d], rows of length one.
        texts: T, Float[B,d], likewise; row i belongs to picture i.
        scale: what cosines are multiplied by.
        same: Bool[B,B], whether two captions are one sentence.
    """
    logits = scale * images @ texts.T  # [B,B]
    targets = same.to(logits) / same.sum(1, keepdim=True)  # [B,B]
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class MiniCLIP(Localizer):
    """Mini-CLIP in training: it learns from captions, and then names and points without having been shown a class.

    Args:
        classes: names of the classes, in words that its captions have.
        kind: which of the maps of `ClipMaps` it draws; CLIP-ES has the other classes for rivals.
        template: a caption with a place for the name.
        pool: of `mini_clip`.

    Raises:
        RecipeError: a name has an unknown word, or there is no such kind or pool.
    """

    needs = ("caption",)

    def __init__(
        self, classes: Sequence[str], kind: Kind = "vanilla", template: str = "a picture of a {}", pool: Pool = "tok"
    ) -> None:
        super().__init__()
        check_choice("MiniCLIP", "kind", kind, get_args(Kind))
        check_choice("MiniCLIP", "pool", pool, get_args(Pool))
        self.classes, self.kind = list(classes), kind
        self.tokenizer = WordTokenizer()
        self.prompts = self.tokenizer([template.format(name) for name in classes])  # [K,context]
        self.model = mini_clip(self.tokenizer, pool)

    @classmethod
    def from_data(cls, data: WsolDataset, **arguments: Any) -> MiniCLIP:
        """With the class names of a data set."""
        return cls(data.classes, **arguments)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`contrastive`: the loss of pictures against captions; with several processes over this one's pairs."""
        images = batch["image"]
        mean, std = (images.new_tensor(colour).view(3, 1, 1) for colour in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        words = self.tokenizer(batch["caption"]).to(images.device)  # [B,context]
        v = self.model.encode_image((images - mean) / std, normalize=True)  # [B,d]
        t = self.model.encode_text(words, normalize=True)  # [B,d]
        same = (words[:, None] == words).all(2)  # [B,B]
        return {"contrastive": contrastive_loss(v, t, self.model.logit_scale.exp(), same)}

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Zero-shot logits, and the map of each label or of the predicted class; the model stays as it is."""
        model = copy.deepcopy(self.model).eval()
        texts = model.encode_text(self.prompts.to(images.device))  # [K,d]
        return ClipMaps(model, texts, kind=self.kind, rivals="all").localize(images, labels)
