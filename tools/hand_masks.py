"""What equation 1 of the weight map says of masks that we know: the animal, its telling part, and others, on scenes.

    python -m tools.hand_masks --to results/weight_map_by_hand.json --seeds 0,1,2 --vary data.options.part_size=0.2,0.5

The classifiers are those of `scenes/cam`; no mask is learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsol_lib import tune_process

tune_process()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from wsol_lib import engine, grid  # noqa: E402
from wsol_lib.data import load  # noqa: E402
from wsol_lib.methods.weight_map import invariance_loss  # noqa: E402

GROW = 7  # pixels of the square by which the part is grown, so that its edge is seen


def masks_by_hand(animal: Tensor, part: Tensor) -> dict[str, Tensor]:
    """Masks Float[B,h,w] by name, from those of the animals and of their telling parts, Float[B,h,w] of 0 and 1."""
    grown = F.max_pool2d(part, GROW, stride=1, padding=GROW // 2)
    whole = torch.ones_like(animal)
    return {
        "all": whole, "animal": animal, "part": grown, "all but part": 1 - grown, "all but animal": 1 - animal,
        "all, at half": whole / 2, "nothing": whole * 0,
    }  # fmt: skip


@torch.no_grad()
def judge(f: Any, images: Tensor, mask: Tensor) -> dict[str, float]:
    """Means over pictures of both terms of equation 1, and per cent of the pictures that keep their name."""
    inputs = f.network.normalize(images)
    whole, masked = f.classify(inputs), f.classify(inputs * mask[:, None])  # [B,K]
    kept = (whole.argmax(1) == masked.argmax(1)).double().mean()
    return {
        "invariance": invariance_loss(whole, masked).item(), "area": mask.mean().item(), "kept": 100 * kept.item()
    }  # fmt: skip


def main(
    to: Annotated[Path, typer.Option(help="The JSON file to write.")],
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0",
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for scenes/cam.")] = None,
    vary: Annotated[list[str] | None, typer.Option(help="KEY=A,B,C: a setting for each value.")] = None,
    n: Annotated[int, typer.Option(help="How many test pictures.")] = 300,
    out: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs",
) -> None:
    """Train the classifiers that are not trained yet, and judge the masks."""
    axes = dict(grid.axis(text) for text in vary or [])
    finished = {}
    for setting, recipe in grid.cells(["scenes/cam"], set_ or [], axes, [int(seed) for seed in seeds.split(",")]):
        result = engine.run(recipe, out)
        scenes: Any = load("scenes", "test", size=recipe.data.size, **recipe.data.options | {"n": n})
        images = torch.stack([scenes[i]["image"] for i in range(n)])  # [n,3,h,w]
        animal, part = (torch.from_numpy(masks).float() for masks in (scenes.masks, scenes.part_masks))
        found = {name: judge(result.localizer, images, mask) for name, mask in masks_by_hand(animal, part).items()}
        finished[engine.digest(recipe.model_dump(mode="json"))] = {
            "setting": setting, **(result.results or {}), "by_hand": found, "pictures": n
        }  # fmt: skip
        grid.store(to, finished)


if __name__ == "__main__":
    typer.run(main)
