"""One function moves pictures, boxes, masks and maps, so that they cannot drift apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as Float[3,H,W] in [0,1]."""
    array = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(array.transpose(2, 0, 1).copy()).float().div_(255)


@dataclass(frozen=True)
class Frame:
    """Resize the whole picture, then crop a window, then perhaps mirror it.

    Args:
        width, height: size of the whole picture after resizing, in pixels.
        crop: `(left, top, width, height)` inside the resized picture, or None for all of it.
        flip: mirror left and right, last.
    """

    width: int
    height: int
    crop: tuple[int, int, int, int] | None = None
    flip: bool = False

    @property
    def window(self) -> tuple[int, int, int, int]:
        """`(left, top, width, height)` of what remains visible, in pixels of the resized picture."""
        return self.crop or (0, 0, self.width, self.height)

    def image(self, picture: Image.Image) -> Tensor:
        """The picture in this frame: Float[3,H,W] in [0,1], bilinear as PIL resizes."""
        picture = picture.convert("RGB")
        if picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return self._cut(to_tensor(picture))

    def boxes(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Boxes Float[N,4] of a picture of `image_size` (width, height), in this frame; neither rounded nor clipped.

        Corners are treated as points: x becomes `x * width / image_width - left`, mirrored about the window.
        """
        left, top, width, _ = self.window
        size, image = boxes.new_tensor([self.width, self.height] * 2), boxes.new_tensor([*image_size] * 2)
        moved = boxes * size / image - boxes.new_tensor([left, top, left, top])
        if self.flip:
            moved = torch.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], dim=1)
        return moved

    def mask(self, mask: Tensor) -> Tensor:
        """A mask Bool[h,w] of the whole picture, in this frame, by nearest neighbour as OpenCV takes it: Bool[H,W]."""
        resized = F.interpolate(mask[None, None].float(), (self.height, self.width), mode="nearest")[0, 0]
        return self._cut(resized) > 0.5

    def map(self, score_map: Tensor) -> Tensor:
        """A score map Float[h,w] of the whole picture, in this frame, bilinear: Float[H,W]."""
        resized = F.interpolate(score_map[None, None], (self.height, self.width), mode="bilinear")[0, 0]
        return self._cut(resized)

    def _cut(self, grid: Tensor) -> Tensor:
        left, top, width, height = self.window
        cut = grid[..., top : top + height, left : left + width]
        return cut.flip(-1) if self.flip else cut
