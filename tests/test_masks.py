"""The tool that measures the sizes of SAT's masks."""

from __future__ import annotations

import pytest
import torch

from tools.masks import masks, sizes
from wsol_lib import engine
from wsol_lib.types import RecipeError

SMALL = ["stages.0.epochs=1", "data.options.n=32", "evaluate.options.n=24", "evaluate.args.tau=0.3"]


def test_sizes_by_hand():
    covered = torch.zeros(5, 2, 2)
    covered[:, 0, 0] = torch.tensor([0.5, 0.2, 0.3, 1.0, 0.4])
    found = torch.full((5, 2, 2), 0.1)
    found[:, 0, 0] = torch.tensor([0.3, 0.5, 0.3, 0.9, 0.3])
    areas = torch.tensor([0.6, 0.8, 0.6, 1.2, 0.6]) / 4
    on = (0.5 * 0.3 + 0.2 * 0.5 + 0.3 * 0.3 + 0.9 + 0.4 * 0.3) / 2.4
    beside = (15 * 0.1 + 0.5 * 0.3 + 0.8 * 0.5 + 0.7 * 0.3 + 0.6 * 0.3) / 17.6
    assert sizes(found, covered) == pytest.approx(
        {
            "mean": 100 * areas.mean().item(), "on the animal": 100 * on, "beside it": 100 * beside,
            "spread": 100 * areas.std().item(), "smallest fifth": 20, "largest fifth": 30,
            "smallest fifth, animal": 5, "largest fifth, animal": 25,
        }
    )  # fmt: skip


def test_a_run_of_sat_is_measured_and_others_are_refused(tmp_path):
    found = masks(engine.load_recipe("scenes/sat", SMALL), tmp_path)["scores"]
    assert 0 < found["smallest fifth, animal"] < found["largest fifth, animal"] < 100
    assert 0 < found["beside it"] < 100
    with pytest.raises(RecipeError, match="is not SAT on scenes"):
        masks(engine.load_recipe("scenes/ts-cam", SMALL), tmp_path)
