"""What equation 1 of the weight map says of masks that we know: the object, a telling part, and others.

    python -m tools.hand_masks scenes/weight-map --to results/weight_map_by_hand.json --seeds 0,1,2 \
        --vary data.options.part_size=0.2,0.5
    python -m tools.hand_masks cub/weight-map-lite0 --to results/weight_map_by_hand_cub.json

The classifier is the first stage of a recipe; no mask is learned. On photographs the object is all that lies in a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wsol_lib import tune_process

tune_process()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from wsol_lib import engine, grid  # noqa: E402
from wsol_lib.cli import Out, Recipes, Seeds, Set, To, Vary  # noqa: E402
from wsol_lib.data.dataset import WsolDataset  # noqa: E402
from wsol_lib.data.scenes import Scenes  # noqa: E402
from wsol_lib.methods.weight_map import invariance_loss  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402

BATCH = 50
GROW = 7  # pixels of the square by which the part is grown, so that its edge is seen


def in_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Float[h,w], 1 inside of boxes Float[n,4] and 0 elsewhere."""
    mask = torch.zeros(*shape)
    for x0, y0, x1, y1 in boxes.round().long().tolist():
        mask[y0:y1, x0:x1] = 1
    return mask


def masks_by_hand(item: Mapping[str, Any], part: Tensor | None) -> dict[str, Tensor]:
    """Masks Float[h,w] by name: of a scene from its `mask` and that of its part, of a photograph from its `boxes`."""
    whole = torch.ones(item["image"].shape[-2:])
    by_name = {"all": whole, "all, at half": whole / 2, "nothing": whole * 0}
    if part is None:
        box = in_boxes(item["boxes"], whole.shape)
        return by_name | {"box": box, "all but box": 1 - box}
    animal = item["mask"].float()
    grown = F.max_pool2d(part.float()[None], GROW, stride=1, padding=GROW // 2)[0]
    return by_name | {"animal": animal, "all but animal": 1 - animal, "part": grown, "all but part": 1 - grown}


@torch.no_grad()
def judge(f: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Of each picture Float[B,3,h,w] through its mask Float[B,h,w]: both terms of equation 1, and whether f still gives
    it the same name. Float[B,3]."""
    inputs = f.network.normalize(images)
    whole, masked = f.classify(inputs), f.classify(inputs * mask[:, None])  # [B,K]
    invariance = torch.stack([invariance_loss(a, b) for a, b in zip(whole.split(1), masked.split(1), strict=True)])
    return torch.stack([invariance, mask.mean((1, 2)), (whole.argmax(1) == masked.argmax(1)).float()], 1)


def judge_all(f: Any, dataset: WsolDataset, n: int) -> dict[str, dict[str, float]]:
    """What `judge` says of every mask, as means over n pictures, evenly spread; names kept in per cent."""
    found: dict[str, list[Tensor]] = {}
    for places in torch.linspace(0, len(dataset) - 1, n).long().split(BATCH):
        items = [dataset[i] for i in places.tolist()]
        parts = torch.from_numpy(dataset.part_masks)[places] if isinstance(dataset, Scenes) else [None] * len(items)
        masks = [masks_by_hand(item, part) for item, part in zip(items, parts, strict=True)]
        images = torch.stack([item["image"] for item in items])  # [B,3,h,w]
        for name in masks[0]:
            found.setdefault(name, []).append(judge(f, images, torch.stack([each[name] for each in masks])))
    means = {name: torch.cat(parts).double().mean(0).tolist() for name, parts in found.items()}
    return {name: {"invariance": d, "area": area, "kept": 100 * kept} for name, (d, area, kept) in means.items()}


def by_hand(recipe: Recipe, n: int, out: Path) -> dict[str, Any]:
    """Train the classifier of a recipe of one stage, and judge the masks on n of its test pictures."""
    result = engine.run(recipe, out)
    dataset, _ = engine.evaluation_data(recipe)
    return {**(result.results or {}), "by_hand": judge_all(result.localizer, dataset, n), "pictures": n}


def main(
    recipes: Recipes,
    to: To,
    seeds: Seeds = "0",
    overrides: Set = None,
    vary: Vary = None,
    n: Annotated[int, typer.Option(help="How many test pictures, evenly spread.")] = 300,
    out: Out = Path("runs"),
) -> None:
    """Train the classifiers that are not trained yet, and judge the masks. Cells that the file holds are kept."""
    cells = grid.asked(recipes, overrides or (), vary or (), seeds)
    first = [(setting, recipe.model_copy(update={"stages": recipe.stages[:1]})) for setting, recipe in cells]
    grid.collect(first, to, lambda recipe: by_hand(recipe, n, out))


if __name__ == "__main__":
    typer.run(main)
