"""Kinds of failure: boxes drawn by hand, and worlds that differ in one knob."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from tools import failures as tool
from wsol_lib import engine
from wsol_lib.data import load
from wsol_lib.failures import KINDS, kind
from wsol_lib.metrics import Protocol
from wsol_lib.types import Localization, Localizer

BIRD, FISH = [10.0, 10, 30, 30], [40.0, 10, 60, 30]


@pytest.mark.parametrize(
    ("box", "objects", "expected"),
    [
        ([12, 10, 30, 30], [BIRD], "right"),
        ([10, 10, 30, 20], [BIRD], "right"),  # IoU exactly one half
        ([10, 10, 30, 19], [BIRD], "part"),
        ([22, 22, 36, 36], [BIRD], "elsewhere"),  # 64 of 196 on the bird, 64 of 400 of it
        ([0, 0, 40, 40], [BIRD], "more"),
        ([10, 10, 60, 30], [BIRD, FISH], "several"),
        ([5, 5, 45, 45], [BIRD, FISH], "more"),  # a quarter of the fish only
        ([0, 40, 10, 50], [BIRD, FISH], "elsewhere"),
        ([30, 60, 70, 130], [[0.0, 0, 200, 110], [40.0, 112, 60, 128]], "part"),  # of the large one
        ([0, 0, 10, 10], [[4.0, 0, 14, 10]], "more"),  # as large, shifted
        ([0, 0, 0, 0], [BIRD], "elsewhere"),
        ([20, 20, 10, 10], [BIRD], "elsewhere"),
        ([0, 0, 64, 64], [], "elsewhere"),
    ],
)
def test_kinds_by_hand(box, objects, expected):
    assert kind(torch.tensor(box, dtype=torch.float), torch.tensor(objects).reshape(-1, 4)) == expected


def test_a_stricter_iou_turns_right_boxes_into_parts():
    part, bird = torch.tensor([10.0, 10, 30, 24]), torch.tensor([BIRD])
    assert (kind(part, bird), kind(part, bird, delta=0.75)) == ("right", "part")


def test_worlds_are_the_same_pictures_but_for_one_knob():
    plain, mirrored = (load("scenes", "test", size=64, n=30, **tool.WORLDS[w]) for w in ("as it is", "mirrored"))
    assert torch.equal(plain.labels, mirrored.labels) and (plain.habitats == mirrored.habitats).all()
    assert all(torch.equal(plain.boxes(i), mirrored.boxes(i)) for i in range(30))
    assert (plain.images != mirrored.images).any((1, 2, 3)).sum() > 15


class Boxes(Localizer):
    """Finds the box of the first object, or nothing."""

    uses_labels = False

    def __init__(self, dataset, empty):
        super().__init__()
        self.boxes = iter([torch.empty(0, 4) if empty else dataset.boxes(i)[:1] for i in range(len(dataset))])
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def localize(self, images, labels=None):
        found = [next(self.boxes) for _ in images]
        return Localization(None, None, boxes=found, scores=[torch.ones(len(b)) for b in found])


@pytest.mark.parametrize(("empty", "expected"), [(False, "right"), (True, "elsewhere")])
def test_boxes_without_names_are_sorted_too(empty, expected):
    dataset = load("scenes", "test", size=64, n=6)
    kinds, misnamed = tool.kinds_of(Boxes(dataset, empty), dataset, Protocol(resize=64, tau=0.5))
    assert set(kinds) == {expected} and misnamed is None


def test_a_detector_needs_no_threshold():
    recipe = engine.load_recipe("scenes/wend", ["evaluate.options.n=4"])
    _, protocol = engine.evaluation_data(recipe)
    val = tool.pictures(recipe, "val")
    assert tool.with_threshold(protocol, Boxes(val, empty=False), val).tau == 0.5


def test_other_data_and_other_frames_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="scenes"):
        tool.judge(engine.load_recipe("cub/sat-deit_small-released"), tmp_path)
    with pytest.raises(SystemExit, match="64"):
        tool.judge(engine.load_recipe("scenes/cam", ["evaluate.args.resize=128"]), tmp_path)


def test_the_tool_sorts_every_picture_of_every_world(tmp_path):
    small = ["--set", "data.options.n=60", "--set", "evaluate.options.n=24", "--set", "stages.cam.epochs=1",
             "--set", "stages.cam.batch_size=20"]  # fmt: skip
    command = ["scenes/cam", "--to", str(tmp_path / "f.json"), "--out", str(tmp_path / "runs"), *small]
    app = tool.typer.Typer()
    app.command()(tool.main)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (cell,) = json.loads((tmp_path / "f.json").read_text())["cells"].values()
    for world in tool.WORLDS:
        assert sum(cell["scores"][f"{world}: {one}"] for one in KINDS) == pytest.approx(100)
    assert cell["scores"]["as it is: lost"] == 0
    assert cell["recipe"]["stages"][0]["epochs"] == 1  # what was set on the command line reached the run


def test_knobs_reach_the_pictures():
    recipe = engine.load_recipe("scenes/cam", ["evaluate.options.n=8"])
    plain, mirrored = (tool.pictures(recipe, "test", **tool.WORLDS[w]) for w in ("as it is", "mirrored"))
    assert len(plain) == len(mirrored) == 8 and (plain.images != mirrored.images).any()
