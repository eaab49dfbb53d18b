"""How often the highest pixel of a map lies on the object, for recipes on scenes: the pointing game.

    python -m tools.pointing scenes/cam scenes/ci-cam --to results/pointing.json --seeds 0,1,2 \
        --vary data.options.context_bias=0,1

Runs that are finished in --out are not trained again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from wsol_lib import tune_process

tune_process()

import torch  # noqa: E402

from wsol_lib import engine, maps  # noqa: E402
from wsol_lib.cli import grid_command  # noqa: E402
from wsol_lib.data.scenes import Scenes  # noqa: E402
from wsol_lib.metrics import pointing_game  # noqa: E402
from wsol_lib.recipe import Recipe  # noqa: E402


def point(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What a run of a recipe points at, and its floor, the middle of the picture."""
    result = engine.run(recipe, out, progress=False)
    dataset, _ = engine.evaluation_data(recipe)
    if not isinstance(dataset, Scenes):
        raise SystemExit(f"{recipe.name} is not measured on scenes, and has no masks to point at")
    masks = torch.from_numpy(dataset.masks)  # [N,S,S]
    found = maps.resize(engine.localize(result.localizer, dataset, progress=False).maps, masks.shape[-1])
    middle = torch.zeros_like(found)
    middle[:, masks.shape[-2] // 2, masks.shape[-1] // 2] = 1
    floor = {"middle of the picture": {"pointing": pointing_game(middle, masks)}}
    return {
        **(result.results or {}),
        "scores": {"pointing": pointing_game(found, masks)},
        "floors": floor,
        "intervals": {},
    }


main = grid_command(point, "Train what is not trained yet, and point. Cells that the file holds are kept as they are.")


if __name__ == "__main__":
    typer.run(main)
