"""Train a small network once and keep its weights, as other recipes name them: `weights: wsol:scenes-vit`.

    python -m tools.pretrain scenes-vit

runs the recipe `pretrain/scenes-vit`, and writes `data/weights/scenes-vit.safetensors`, in half precision and without
the head, and beside it `scenes-vit.json`: recipe, seed, commit, versions, hardware, seconds and scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wsol_lib import tune_process

tune_process()

from wsol_lib import backbones, engine, mini_clip  # noqa: E402
from wsol_lib.cli import Out, Set  # noqa: E402
from wsol_lib.mini_clip import MiniCLIP  # noqa: E402


def main(
    name: Annotated[str, typer.Argument(help="A recipe of the folder `pretrain`.")],
    to: Annotated[Path, typer.Option(help="The folder of the weights.")] = backbones.OWN_WEIGHTS,
    overrides: Set = None,
    out: Out = Path("runs"),
) -> None:
    """Train the network of a recipe, and store its weights and how they came about."""
    run = engine.run(engine.load_recipe(f"pretrain/{name}", overrides or ()), out)
    to.mkdir(parents=True, exist_ok=True)
    file = to / f"{name}.safetensors"
    if isinstance(run.localizer, MiniCLIP):
        mini_clip.save(file, run.localizer.model)
    else:
        backbones.save(file, run.localizer.get_submodule("backbone"))  # type: ignore[arg-type]
    (to / f"{name}.json").write_text(json.dumps(run.results, indent=1) + "\n")
    typer.echo(f"weights: {file}")


if __name__ == "__main__":
    typer.run(main)
