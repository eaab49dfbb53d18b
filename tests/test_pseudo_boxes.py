"""The tool that counts right pseudo boxes."""

import pytest
import torch

from tools.pseudo_boxes import THRESHOLDS, judge, overlaps
from wsol_lib import data, engine
from wsol_lib.boxes import iou
from wsol_lib.pseudo import boxes_from_maps

SMALL = ["stages.cam.epochs=1", "data.options.n=32", "evaluate.options.n=24"]


def test_the_best_of_several_counts_and_no_box_counts_nothing():
    drawn = [torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 4, 4]])]
    others = [torch.tensor([[20.0, 20, 30, 30], [0, 0, 10, 5]]), torch.tensor([[0.0, 0, 9, 9]]), torch.zeros(0, 4)]
    assert overlaps(drawn, others).tolist() == [0.5, 0, 0]


def test_shares_of_right_boxes_equal_those_counted_one_by_one(tmp_path):
    recipe = engine.load_recipe("smoke", SMALL)
    scores = judge(recipe, tmp_path, recipe)["scores"]
    localizer = engine.run(recipe, tmp_path, progress=False).localizer
    for split, n in {"train": 32, "test": 24}.items():
        seen = data.load("scenes", split, size=64, n=n, supervision="oracle")
        right = 0
        for i in range(n):
            one = localizer.localize(seen[i]["image"][None], seen.labels[i : i + 1]).maps
            (box,) = boxes_from_maps(one, seen.image_sizes[i : i + 1], "otsu")
            right += bool(len(box)) and iou(box, seen.boxes(i)).max().item() >= 0.5
        assert scores[f"{split} otsu"] == pytest.approx(100 * right / n, abs=100 / n)  # one may be rounded otherwise
    assert scores["agreement zero"] > max(scores[f"agreement {t}"] for t in THRESHOLDS if t != "zero") - 1e-9
    assert 0.9 < scores["agreement zero"] <= 1
