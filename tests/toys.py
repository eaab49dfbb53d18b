"""Small stand-ins for the engine's tests: a data set of coloured squares, a one-stage and a two-stage method."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsol_lib.data.dataset import WsolDataset
from wsol_lib.types import Batch, Frozen, Localization, Localizer


class Squares(WsolDataset):
    """Class 0 is a red square, 1 a green, 2 a blue one, on a grey ground; drawn from the index alone."""

    def __init__(self, n: int = 24, split: str = "train", size: int = 16, **extra: Any) -> None:
        self.name, self.split, self.size = "squares", split, size
        self.classes = ("red", "green", "blue")
        self.labels = torch.arange(n) % 3
        self.image_ids = tuple(f"{split}-{i}" for i in range(n))
        self.image_sizes = torch.full((n, 2), size)
        self.extra = extra
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def _corner(self, i: int) -> tuple[int, int]:
        return 1 + (5 * i) % 7, 1 + (3 * i) % 7

    def picture(self, i: int) -> Image.Image:
        picture = Image.new("RGB", (self.size, self.size), (90 + i % 40,) * 3)
        colour = tuple(255 if c == int(self.labels[i]) else 0 for c in range(3))
        x, y = self._corner(i)
        picture.paste(colour, (x, y, x + 7, y + 7))
        return picture

    def _boxes(self, i: int) -> Tensor:
        x, y = self._corner(i)
        return torch.tensor([[x, y, x + 7, y + 7]], dtype=torch.float32)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**super().__getitem__(i), **self.extra}


class Teacher(Localizer):
    """A one-layer CAM: 1x1 scores, mean-pooled."""

    def __init__(self, classes: int = 3, seed: int = 0, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, classes, 1))
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.dropout = dropout
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def eval_norm(self) -> Teacher:
        """The same method with its batch norm frozen at the statistics it starts with."""
        self.norm.train = lambda mode=True: self.norm
        self.norm.training = False
        return self

    def scores(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(self.norm(images), self.dropout, self.training))  # [B,K,H,W]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        scores = self.scores(batch["image"])
        cross_entropy = F.cross_entropy(scores.mean((2, 3)), batch["label"])
        return {"classification": cross_entropy, "smoothness": 0.1 * scores.diff(dim=-1).pow(2).mean()}

    def after_step(self) -> None:
        self.steps += 1

    def param_groups(self, recipe: Any) -> list[dict[str, Any]]:
        return [
            {"params": self.head[0].parameters()},
            {"params": self.head[2].parameters(), "lr_scale": recipe.head_rate},
            {"params": self.norm.parameters()},
        ]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        scores = self.scores(images)
        logits = scores.mean((2, 3))
        chosen = logits.argmax(1) if labels is None else labels
        return Localization(logits, scores[torch.arange(len(images), device=images.device), chosen])


class Student(Localizer):
    """Learns a class-agnostic map from a frozen teacher's; needs the teacher's constructor argument."""

    uses_labels = False

    def __init__(self, teacher: Localizer, classes: int = 3, seed: int = 1) -> None:
        super().__init__()
        self.classes, self.teacher = classes, Frozen(teacher)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.mask = nn.Conv2d(3, 1, 3, padding=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        wanted = self.teacher.module.localize(batch["image"], batch["label"]).maps.sigmoid()
        return {"distillation": F.mse_loss(self.mask(batch["image"])[:, 0].sigmoid(), wanted)}

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        logits = self.teacher.module.localize(images).logits
        return Localization(logits, self.mask(images)[:, 0].sigmoid())


class Picky(Teacher):
    """Wants a key that no plain data set gives."""

    needs = ("positive",)


class Exploding(Teacher):
    """Its second loss stops being a number at the third step."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().losses(batch)
        factor = float("nan") if int(self.steps) == 2 else 1.0
        return {**losses, "smoothness": losses["smoothness"] * factor}
