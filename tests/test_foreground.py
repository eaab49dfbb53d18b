"""The tool that judges foreground probabilities."""

import pytest
import torch
import torch.nn.functional as F

from tools.foreground import calibration_error, foreground, judge, on_objects
from wsol_lib import data, engine

SMALL = ["stages.detector.epochs=1", "data.options.n=64", "evaluate.options.n=16"]


def test_calibration_by_hand():
    p = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.95, 0.95])
    right = torch.tensor([True, False, False, False, True, False])
    assert calibration_error(p, right) == pytest.approx(100 * (0.0 + 2 * 0.45) / 6, abs=1e-4)


def test_places_near_the_middle_of_any_box():
    corners = torch.tensor([0.0, 8, 16, 24])
    places = torch.stack([torch.tensor([x, y, x + 8, y + 8]) for y in corners for x in corners])
    boxes = torch.tensor([[0.0, 0, 8, 8], [10, 10, 30, 14]])
    found = on_objects(places, boxes, 1.5).view(4, 4)
    assert found.tolist() == [[True, False, False, False], [False, True, True, True], [False] * 4, [False] * 4]
    assert on_objects(places, boxes, 0.6).view(4, 4)[1].tolist() == [False, False, True, False]


def test_foreground_is_what_the_loss_calls_so():
    recipe = engine.load_recipe("scenes/wend", [*SMALL, "stages.detector.args={entropy: null}"])
    pictures, _ = engine.evaluation_data(recipe)
    model = engine.build(recipe.stages[0], pictures).eval()
    batch = data.collate([pictures[i] for i in range(8)])
    p, right = foreground(model, batch)
    told = model.losses({**batch, "pseudo_boxes": batch["boxes"]})
    assert F.binary_cross_entropy(p, right.float()).item() == pytest.approx(told["classification"].item(), rel=1e-4)


def test_a_run_is_judged_and_other_methods_are_refused(tmp_path):
    scores = judge(engine.load_recipe("scenes/wend", SMALL), tmp_path)["scores"]
    assert 0 < scores["p_elsewhere"] < 1 and 0 <= scores["calibration_error"] <= 100
    with pytest.raises(SystemExit, match="FCOS"):
        judge(engine.load_recipe("scenes/scr", SMALL), tmp_path)
