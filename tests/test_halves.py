"""The tool that measures the halves of TS-CAM's map."""

from __future__ import annotations

import pytest
import torch

from tools.halves import OneHalf, halves
from wsol_lib import engine
from wsol_lib.types import RecipeError

SMALL = ["stages.0.epochs=1", "data.options.n=32", "evaluate.options.n=24", "evaluate.args.tau=0.3"]


def test_the_halves_multiply_to_the_whole_and_the_whole_scores_as_the_run(tmp_path):
    recipe = engine.load_recipe("scenes/ts-cam", SMALL)
    found = halves(recipe, tmp_path)
    run = engine.run(recipe, tmp_path, progress=False)
    assert found["scores"]["coupled"] == run.results["scores"]["gt_known"]
    assert set(found["floors"]) == set(run.results["floors"])
    scenes, _ = engine.evaluation_data(recipe)
    images, labels = torch.stack([scenes[i]["image"] for i in range(4)]), scenes.labels[:4]
    maps = {half: OneHalf(run.localizer, half).localize(images, labels).maps for half in found["scores"]}
    assert torch.allclose(maps["attention"] * maps["semantics"], maps["coupled"], atol=1e-6)
    assert maps["attention"].min() >= 0 and not torch.allclose(maps["attention"], maps["coupled"])


def test_other_methods_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="two halves"):
        halves(engine.load_recipe("scenes/sat", SMALL), tmp_path)
