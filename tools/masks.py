"""How large SAT's masks are on scenes: on the animal, beside it, and for small and for large animals.

    python -m tools.masks scenes/sat --to results/space_masks.json --seeds 0,1,2

`scores` holds means of M over the test pictures, all in per cent: over the whole picture; over the animal and beside it
(a patch counts by its share); over the fifth of the pictures with the smallest and with the largest animals, and those
animals' share of the picture; and `spread`, the standard deviation over pictures of a picture's mean. Runs that are
finished in --out are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from wsol_lib import tune_process

tune_process()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from wsol_lib import engine  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
from wsol_lib.data.scenes import Scenes  # noqa: E402
from wsol_lib.methods.sat import SAT  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402
from wsol_lib.types import RecipeError  # noqa: E402


def sizes(found: Tensor, covered: Tensor) -> dict[str, float]:
    """The `scores` of masks M Float[N,h,w] in [0,1] over animals that cover Float[N,h,w] of each patch."""
    areas, animals = found.mean((1, 2)), covered.mean((1, 2))  # [N]
    by_size, fifth = animals.argsort(), len(animals) // 5
    small, large = by_size[:fifth], by_size[-fifth:]
    shares = {
        "mean": areas.mean(),
        "on the animal": (found * covered).sum() / covered.sum(),
        "beside it": (found * (1 - covered)).sum() / (1 - covered).sum(),
        "spread": areas.std(),
        "smallest fifth": areas[small].mean(),
        "largest fifth": areas[large].mean(),
        "smallest fifth, animal": animals[small].mean(),
        "largest fifth, animal": animals[large].mean(),
    }
    return {name: 100 * share.item() for name, share in shares.items()}


def masks(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Sizes of the masks of a run of SAT."""
    dataset, _ = engine.evaluation_data(recipe)
    result = engine.run(recipe, out, progress=False)
    if not (isinstance(result.localizer, SAT) and isinstance(dataset, Scenes)):
        raise RecipeError(f"{recipe.name} is not SAT on scenes, whose masks and animals could be compared")
    found = engine.localize(result.localizer, dataset, progress=False).maps  # [N,h,w]
    animals = torch.from_numpy(dataset.masks)[:, None].float()  # [N,1,S,S]
    covered = F.interpolate(animals, found.shape[1:], mode="area")[:, 0]
    return {**(result.results or {}), "scores": sizes(found, covered), "floors": {}, "intervals": {}}


main = grid_command(
    masks, "Train what is not trained yet, and measure. Cells that the file holds are kept as they are."
)


if __name__ == "__main__":
    typer.run(main)
