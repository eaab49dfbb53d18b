"""The tool that keeps the IoU of every box and the curve over thresholds."""

from __future__ import annotations

import pytest
import torch

from tools.overlaps import overlaps
from wsol_lib import engine
from wsol_lib.boxes import iou
from wsol_lib.types import RecipeError

SMALL = ["stages.cam.epochs=1", "data.options.n=32", "evaluate.options.n=24", "evaluate.args.tau=0.2"]


def test_ious_and_the_curve_are_those_of_boxes_drawn_one_by_one(tmp_path):
    recipe = engine.load_recipe("smoke", SMALL)
    found = overlaps(recipe, tmp_path)
    scenes, protocol = engine.evaluation_data(recipe)
    drawn = engine.localize(engine.run(recipe, tmp_path, progress=False).localizer, scenes, progress=False).maps
    expected = [float(iou(protocol.box(one)[None].float(), scenes.boxes(i)).max()) for i, one in enumerate(drawn)]
    assert found["ious"] == pytest.approx(expected, abs=0.05)  # the protocol counts pixels
    at_fifth = dict(map(tuple, found["curve"]))[0.2]
    assert at_fifth == pytest.approx(found["scores"]["gt_known"])
    assert at_fifth == pytest.approx(100 * (torch.tensor(found["ious"]) >= 0.5).double().mean().item(), abs=0.01)


def test_a_recipe_that_measures_nothing_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="evaluate"):
        overlaps(engine.load_recipe("smoke", [*SMALL[:2], "evaluate=null"]), tmp_path)
