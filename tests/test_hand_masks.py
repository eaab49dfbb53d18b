"""Masks by hand: where they show what, and what the classifier says of them."""

import pytest
import torch

from tools.hand_masks import in_boxes, judge, judge_all, masks_by_hand
from wsol_lib.backbones import create
from wsol_lib.data import load
from wsol_lib.methods.cam import CAM


@pytest.fixture(scope="module")
def f():
    torch.manual_seed(0)
    model = CAM(create("test_resnet"), 3).eval()
    torch.nn.init.normal_(model.head.weight, std=3)
    return model


def test_boxes_end_before_their_last_edge_and_join():
    mask = in_boxes(torch.tensor([[1.0, 0, 3, 2], [2, 1, 4, 2]]), (3, 5))
    assert mask.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


def test_parts_lie_on_animals_and_opposites_add_up_to_all():
    scenes = load("scenes", "test", size=64, n=6, seed=0)
    masks = masks_by_hand(scenes[4], torch.from_numpy(scenes.part_masks[4]))
    assert torch.equal(masks["animal"], scenes[4]["mask"].float())
    for name in ("animal", "part"):
        assert torch.equal(masks[name] + masks[f"all but {name}"], masks["all"])
    assert (masks["part"] * masks["animal"]).sum() > 0 and masks["part"].sum() > scenes.part_masks[4].sum()


@pytest.mark.needs("cub")
def test_a_photograph_has_its_box(wsol_data):
    birds = load("cub-50", "test", size=64)
    masks, (x0, y0, x1, y1) = masks_by_hand(birds[0], None), birds[0]["boxes"][0].tolist()
    assert masks["box"].sum().item() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.05)
    assert "animal" not in masks and torch.equal(masks["box"] + masks["all but box"], masks["all"])


def test_the_whole_keeps_its_answer_and_costs_its_entropy(f):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    p = f.localize(images).logits.softmax(1)
    said = judge(f, images, torch.ones(4, 64, 64))
    torch.testing.assert_close(said[:, 0], -(p * p.log()).sum(1), rtol=1e-4, atol=1e-5)
    assert said[:, 1:].tolist() == [[1, 1]] * 4
    dark = judge(f, images, torch.zeros(4, 64, 64))
    assert (dark[:, 0] > said[:, 0]).all() and dark[:, 2].sum() < 4


def test_means_are_over_pictures_and_not_over_batches(f, monkeypatch):
    scenes = load("scenes", "test", size=64, n=7, seed=0)
    whole = judge_all(f, scenes, 5)
    monkeypatch.setattr("tools.hand_masks.BATCH", 2)
    for name, found in judge_all(f, scenes, 5).items():
        assert found == pytest.approx(whole[name], rel=1e-4)
