"""How a box is wrong: the kinds of failure that the SAT paper sorts its pictures into by eye, sorted by rule.

The paper names occlusion, more, reflection, part, multiple and label. Three of them are about the box: it holds a
*part* of the object, *more* than the object, or *several* objects at once ("multiple"); what is none of these lies
*elsewhere*. Occlusion and reflection are about the picture, so they are produced, not recognised: scenes draw the same
picture with and without (`tools/failures.py`). "Label" is a wrong class.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from wsol_lib.boxes import iou

Kind = Literal["right", "part", "more", "several", "elsewhere"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind(box: Tensor, objects: Tensor, delta: float = 0.5) -> Kind:
    """What a predicted box is to the objects of its picture.

    * right: its IoU with an object reaches delta;
    * several: it covers at least half of each of two objects;
    * part: at least half of it lies on one object, and less of that object in it;
    * more: it covers at least half of one object (a box of the same size that is only shifted, too);
    * elsewhere: everything else, an empty box and a picture without objects too.

    Args:
        box: Float[4], half-open corners.
        objects: Float[N,4].
        delta: the IoU that counts as a hit.
    """
    if len(objects) == 0 or (box[2:] <= box[:2]).any():
        return "elsewhere"
    if iou(box[None], objects).max() >= delta:
        return "right"
    corners = torch.minimum(box[2:], objects[:, 2:]) - torch.maximum(box[:2], objects[:, :2])  # [N,2]
    shared = corners.clamp(min=0).prod(1)  # [N]
    of_box, of_object = shared / (box[2:] - box[:2]).prod(), shared / (objects[:, 2:] - objects[:, :2]).prod(1)
    if (of_object >= 0.5).sum() > 1:
        return "several"
    if ((of_box >= 0.5) & (of_box > of_object)).any():
        return "part"
    return "more" if of_object.max() >= 0.5 else "elsewhere"
