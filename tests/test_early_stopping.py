"""The choice of an epoch without boxes: held-out pictures, the guard, the weights that come back."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_distributed import together
from toys import Squares, Teacher

from wsol_lib import early_stopping, engine
from wsol_lib.data import load
from wsol_lib.data.views import Augmented, Choices
from wsol_lib.early_stopping import HeldOut, KeepBest, hold_out, in_unit_range
from wsol_lib.engine import Recipe, Stage, Training, fit, load_recipe, run
from wsol_lib.types import Localization, RecipeError

TRAINING = Training(epochs=5, batch_size=6, optimizer={"lr": 0.1})
STEPS = 4  # an epoch of 24 squares
UNIFORM, HAZE, EMPTY = (1.0, 1.0), (0.3, 1.0), (1.0, 0.01)  # score and shown area of maps that the guard must refuse
CURVE = (UNIFORM, (0.5, 0.3), (0.8, 0.3), (0.8, 0.2), (0.6, 0.3))


class Scripted(Teacher):
    """Its maps of an epoch have the score (largest value, see `largest`) and the area that a curve says."""

    curve = CURVE

    def localize(self, images, labels=None):
        score, area = self.curve[int(self.steps) // STEPS - 1]
        scores = torch.zeros(len(images), 100)
        scores[:, : round(100 * area)] = score
        return Localization(maps=scores.view(-1, 10, 10))


class Trap(Squares):
    """May show its boxes and masks by the letter, and blows up when asked for one."""

    supervision = "oracle"

    def _boxes(self, i):
        raise AssertionError("a box was read")

    def _mask(self, i):
        raise AssertionError("a mask was read")


def largest(maps):
    return maps.amax((1, 2))


@pytest.fixture(autouse=True)
def scores(monkeypatch):
    monkeypatch.setitem(early_stopping.SCORES, "largest", largest)


def keeper(**options):
    return KeepBest(HeldOut(Squares(9)), **{"score": "largest", **options})


def kept(curve=CURVE, out=None, training=TRAINING, **options):
    method = Scripted()
    method.curve = curve
    history = fit(method, Squares(), training, out=out, callbacks=[keeper(**options)])
    return method, history


# --- which epoch


def test_the_best_epoch_that_passes_the_guard_comes_back_and_ties_go_to_the_earlier():
    method, history = kept()
    assert history.kept_epoch == 2 and int(method.steps) == 3 * STEPS
    short = Teacher()
    fit(short, Squares(), TRAINING.model_copy(update={"epochs": 3}))
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), short.parameters(), strict=True))
    assert [epoch["largest"] for epoch in history.epochs] == pytest.approx([1, 0.5, 0.8, 0.8, 0.6])
    assert [epoch["shown_area"] for epoch in history.epochs] == pytest.approx([1, 0.3, 0.3, 0.2, 0.3])


@pytest.mark.parametrize("refused", [UNIFORM, HAZE, EMPTY])
def test_where_no_epoch_passes_the_guard_the_last_weights_stay_and_a_warning_says_so(refused):
    with pytest.warns(UserWarning, match="kept no epoch, so the last weights stay"):
        method, history = kept([refused] * 5)
    assert history.kept_epoch is None and int(method.steps) == 5 * STEPS


def test_the_guard_is_a_choice():
    assert kept(area=(0, 1))[1].kept_epoch == 0  # a uniform map has the best score there is
    assert kept([UNIFORM, EMPTY, (0.5, 0.3), EMPTY, UNIFORM], area=(0, 0.9))[1].kept_epoch == 1


def test_stretched_maps_show_what_stands_out_of_a_haze():
    class Haze(Teacher):
        def localize(self, images, labels=None):
            maps = torch.full((len(images), 10, 10), 0.3)
            maps[:, :2] = 0.6
            return Localization(maps=maps)

    data = HeldOut(Squares(9))
    assert KeepBest(data, score="largest").measure(Haze()) == pytest.approx((0.6, 1))
    assert KeepBest(data, score="largest", stretch=True).measure(Haze()) == pytest.approx((1, 0.2))


def test_patience_is_counted_from_the_kept_epoch():
    curve = [UNIFORM, UNIFORM, (0.8, 0.3), (0.7, 0.3), (0.9, 0.3)]
    assert len(kept(curve, patience=1)[1].epochs) == 4
    assert kept(curve, patience=2)[1].kept_epoch == 4
    assert len(kept([(0.5, 0.3), UNIFORM, UNIFORM, UNIFORM, UNIFORM], patience=2)[1].epochs) == 3


def test_every_leaves_epochs_out():
    _, history = kept(every=2)
    assert ["largest" in epoch for epoch in history.epochs] == [False, True, False, True, False]
    assert history.kept_epoch == 3


def test_a_score_that_is_no_number_is_never_the_best(monkeypatch):
    monkeypatch.setitem(early_stopping.SCORES, "largest", lambda maps: largest(maps) * math.nan)
    with pytest.warns(UserWarning, match="kept no epoch"):
        assert kept()[1].kept_epoch is None


@pytest.mark.parametrize("dies", [1, 2, 3, 4])
def test_a_run_that_was_killed_keeps_the_same_epoch(tmp_path, dies):
    class Dies(Scripted):
        def after_step(self):
            super().after_step()
            if int(self.steps) == dies * STEPS + 2:
                raise KeyboardInterrupt

    expected, history = kept(patience=2)
    with pytest.raises(KeyboardInterrupt):
        fit(Dies(), Squares(), TRAINING, out=tmp_path, callbacks=[keeper(patience=2)])
    resumed = Dies()
    resumed.after_step = lambda: Scripted.after_step(resumed)
    again = fit(resumed, Squares(), TRAINING, out=tmp_path, callbacks=[keeper(patience=2)])
    assert again.kept_epoch == history.kept_epoch == 2
    assert again.losses() == history.losses() and len(again.epochs) == len(history.epochs) == 5
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_maps_out_of_range_are_normalised_one_by_one():
    maps = torch.tensor([[[0.2, 0.6]], [[-1.0, 3.0]], [[0.0, 4.0]], [[math.nan, 0.5]], [[7.0, 7.0]]])
    expected = torch.tensor([[[0.2, 0.6]], [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    assert torch.equal(in_unit_range(maps), expected)


def test_the_mean_is_over_pictures_whatever_the_batches():
    class ByPicture(Teacher):
        def localize(self, images, labels=None):
            red = images[:, 0].mean((1, 2)).double()
            below = red * (red > 0.4)
            return Localization(maps=torch.stack([red, below, below, below], 1)[:, :, None])

    data = HeldOut(Squares(10))
    red = torch.stack([data[i]["image"][0].mean() for i in range(10)]).double()
    expected, shown = red.mean().item(), torch.where(red > 0.4, 1.0, 0.25).mean().item()
    assert 0.25 < shown < 1
    for size in (1, 3, 10):
        score, area = KeepBest(data, score="largest", batch_size=size).measure(ByPicture())
        assert score == pytest.approx(expected) and area == pytest.approx(shown)


def test_labels_reach_only_the_methods_that_use_them():
    class Asks(Scripted):
        def localize(self, images, labels=None):
            assert (labels is not None) == self.uses_labels
            return super().localize(images, labels)

    method = Asks()
    method.steps += STEPS
    for uses in (True, False):
        method.uses_labels = uses
        keeper().measure(method)


def test_a_method_of_boxes_alone_is_refused():
    class Boxes(Teacher):
        def localize(self, images, labels=None):
            return Localization(boxes=[torch.zeros(1, 4)] * len(images))

    with pytest.raises(RecipeError, match="Boxes gives boxes alone"):
        keeper().measure(Boxes())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"score": "completness"}, "no score 'completness'; did you mean 'completeness'"),
        ({"area": (0.5, 0.4)}, "0 <= low < high <= 1"),
        ({"area": (0.5,)}, "0 <= low < high <= 1"),
        ({"every": 0}, "at least 1"),
        ({"patience": 0}, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        keeper(**options)


def test_completeness_is_the_score_of_the_weight_map():
    maps = torch.zeros(3, 8, 8)
    maps[1:, 2:6, 2:6] = 1
    maps[2, 0, 0] = 1
    assert early_stopping.SCORES["completeness"](maps).tolist() == pytest.approx([0, 1, 16 / 17])


# --- which pictures


def test_the_held_out_pictures_are_apart_balanced_and_stable():
    labels = torch.tensor([0] * 10 + [2] * 20 + [3] + [4] * 2)[torch.randperm(33)]
    learned, held = hold_out(labels, 0.3, 5, "mask")
    assert sorted(learned + held) == list(range(33)) and learned == sorted(learned) and held == sorted(held)
    assert labels[held].bincount(minlength=5).tolist() == [3, 0, 6, 0, 1]
    assert hold_out(labels, 0.3, 5, "mask") == (learned, held)
    assert hold_out(labels, 0.3, 6, "mask")[1] != held and hold_out(labels, 0.3, 5, "cam")[1] != held
    assert hold_out(labels, 0, 5, "mask") == (list(range(33)), [])
    assert labels[hold_out(labels, 0.999, 5, "mask")[0]].tolist().count(3) == 1


def test_held_out_pictures_stand_still_in_the_frame_of_the_training():
    data = Squares(6)
    views = Augmented(data, resize=20, crop=12)
    assert HeldOut(data, Choices(views, 3)).frame(2).window == (4, 4, 12, 12)
    assert HeldOut(data, Choices(data, [views])).frame(2).width == 20
    assert HeldOut(data, Augmented(data, crop=12, random_resized=(0.2, 1))).frame(2).window == (0, 0, 12, 12)
    assert HeldOut(data, data)[2]["image"].equal(data[2]["image"])
    assert HeldOut(data, views)[2]["image"].shape == (3, 12, 12)


def test_boxes_and_masks_are_never_read():
    assert set(HeldOut(Trap(6))[0]) == {"image", "label", "index"}
    with pytest.raises(AssertionError, match="a box was read"):
        Trap(6)[0]
    fit(Teacher(), Squares(), TRAINING, callbacks=[KeepBest(HeldOut(Trap(9)), score="largest", area=(0, 1))])


# --- in a recipe


@pytest.fixture
def squares(monkeypatch):
    from wsol_lib.methods import METHODS

    seen = {"trained": set(), "held": set()}

    class Watched(Squares):
        def picture(self, i):
            seen["now"].add(i)
            return super().picture(i)

    def after_epoch(self, *args):
        seen["now"] = seen["held"]
        done = original(self, *args)
        seen["now"] = seen["trained"]
        return done

    original = KeepBest.after_epoch
    seen["now"] = seen["trained"]
    monkeypatch.setattr(KeepBest, "after_epoch", after_epoch)
    monkeypatch.setitem(METHODS, "teacher", "toys:Teacher")
    monkeypatch.setitem(METHODS, "scripted", "test_early_stopping:Scripted")
    monkeypatch.setattr(engine, "load", lambda name, split, *, size=None, view=None: Watched(30))
    return seen


def recipe(**changes):
    keep = {"name": "KeepBest", "args": {"score": "largest"}}
    stage = {"name": "a", "method": "scripted", "epochs": 5, "batch_size": 6, "hold_out": 0.2, "callbacks": [keep]}
    return Recipe(name="r", data={"name": "squares"}, stages=[{**stage, **changes}], evaluate=None)


def test_a_stage_learns_from_some_pictures_and_is_judged_on_the_others(squares, tmp_path):
    result = run(recipe(), tmp_path, device="cpu")
    assert result.histories["a"].kept_epoch == 2 and int(result.localizer.steps) == 3 * STEPS
    expected = hold_out(Squares(30).labels, 0.2, 0, "a")
    assert squares["held"] == set(expected[1]) and len(squares["held"]) == 6
    assert squares["trained"] == set(expected[0])
    again = run(recipe(), tmp_path, device="cpu", train=False)
    assert again.histories["a"] == result.histories["a"] and int(again.localizer.steps) == 3 * STEPS


def test_callbacks_of_the_recipe_come_first(squares, tmp_path):
    class Reads(engine.Callback):
        def after_epoch(self, epoch, localizer, history):
            assert "largest" in history.epochs[-1]

        def after_fit(self, localizer, history):
            assert history.kept_epoch == 2

    run(recipe(), tmp_path, device="cpu", callbacks={"a": [Reads()]})


def test_what_a_stage_holds_out_and_how_it_is_judged_are_part_of_its_hash(monkeypatch):
    data = load("scenes", "train", size=64, n=48)
    hashes = []
    keep = {"name": "KeepBest"}
    for changes in (
        {},
        {"hold_out": 0.3},
        {"hold_out": 0.3, "callbacks": [keep]},
        {"hold_out": 0.3, "callbacks": [{**keep, "args": {"patience": 3}}]},
    ):
        whole = Recipe(name="r", data={"name": "scenes"}, stages=[{"name": "a", "method": "cam", **changes}])
        hashes.append(engine._stage_hash(whole, whole.stages[0], data, {}))
    assert len(set(hashes)) == 4


def test_the_code_of_the_score_is_part_of_the_hash(monkeypatch):
    stage = recipe(hold_out=0.2).stages[0]
    files = []
    monkeypatch.setattr(engine, "_source", lambda name: files.append(name))
    engine._code_of(stage, Squares(), Teacher)
    assert "wsol_lib.methods.weight_map" in files
    files.clear()
    engine._code_of(recipe(hold_out=0, callbacks=[]).stages[0], Squares(), Teacher)
    assert "wsol_lib.methods.weight_map" not in files


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hold_out": 1.0}, "'stages.0.hold_out' is 1.0; it should be less than 1"),
        ({"hold_out": -0.1}, "'stages.0.hold_out' is -0.1"),
        ({"holdout": 0.1}, "'stages.0.holdout'; did you mean 'hold_out'"),
        ({"callbacks": [{"nme": "KeepBest"}]}, "'stages.0.callbacks.0.nme'; did you mean 'name'|lacks the key"),
        ({"callbacks": [{"name": "KeepBst"}]}, "no callback 'KeepBst'; did you mean 'KeepBest'"),
        ({"callbacks": [{"name": "Callback"}]}, "no callback 'Callback'"),
        (
            {"callbacks": [{"name": "KeepBest", "args": {"patince": 1}}]},
            "^stages.a.callbacks: .*did you mean 'patience'",
        ),
        ({"callbacks": [{"name": "KeepBest", "args": {"area": 3}}]}, "^stages.a.callbacks: "),
        ({"callbacks": [{"name": "KeepBest", "args": {"score": "x"}}]}, "^stages.a.callbacks: .*no score 'x'"),
        ({"hold_out": 0}, "^stages.a.callbacks: .*no held-out pictures: set the stage's key hold_out"),
    ],
)
def test_a_faulty_recipe_is_explained(squares, tmp_path, changes, text):
    with pytest.raises(RecipeError, match=text) as caught:
        run(recipe(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_scenes_give_pictures_to_hold_out():
    data = load("scenes", "train", size=64, n=48)
    learned, held = engine._split(Stage(name="a", method="cam", hold_out=0.25), data, 0)
    assert len(learned) + len(held) == 48 and 0 < len(held) <= 12
    assert set(held.image_ids) | set(learned.image_ids) == set(data.image_ids)
    assert len(engine._split(Stage(name="a", method="cam"), data, 0)[1]) == 0


def test_the_shown_area_counts_what_reaches_a_tenth_of_the_maximum():
    faint = torch.tensor([[0.02, 0.05], [0.06, 0.5]])
    maps = torch.stack([faint, torch.full((2, 2), 0.3), torch.zeros(2, 2)])
    assert early_stopping.shown_area(maps).tolist() == [0.75, 1, 0]


# --- several processes


def both_ways(rank, folder):
    early_stopping.SCORES["largest"] = largest
    method = Teacher()
    callback = KeepBest(HeldOut(Squares(7)), score="largest", area=(0, 1), batch_size=2)
    history = fit(method, Squares(), TRAINING, out=folder, callbacks=[callback])
    curve = [epoch["largest"] + epoch["shown_area"] for epoch in history.epochs]
    weights = torch.cat([p.detach().flatten() for p in method.parameters()])
    normed = Teacher(norm=True)
    fit(normed, Squares(), TRAINING)
    return {"kept": history.kept_epoch, "curve": curve, "weights": weights, "buffers": list(normed.buffers())}


@pytest.mark.slow
def test_two_processes_keep_the_epoch_that_one_keeps(tmp_path):
    (tmp_path / "two").mkdir()
    reports = together(both_ways, tmp_path / "two")
    alone = both_ways(0, tmp_path / "one")
    assert all(torch.equal(a, b) for a, b in zip(reports[0]["buffers"], reports[1]["buffers"], strict=True))
    assert not torch.equal(reports[0]["buffers"][0], Teacher(norm=True).norm.running_mean)
    assert reports[0]["curve"] == reports[1]["curve"] == pytest.approx(alone["curve"], abs=1e-5)
    for report in reports:
        assert report["kept"] == alone["kept"]
        assert torch.allclose(report["weights"], alone["weights"], atol=1e-5)


def test_results_tell_the_kept_epoch(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(
        engine, "load", lambda name, split, *, size=None, view=None, **o: _seen(Squares(30, split), view)
    )
    whole = recipe(method="teacher", callbacks=[{"name": "KeepBest", "args": {"score": "largest", "area": [0, 1]}}])
    whole = whole.model_copy(update={"evaluate": engine.Evaluate(args={"resize": 16, "taus": 20})})
    result = run(whole, tmp_path, device="cpu")
    written = json.loads((result.folder / "results.json").read_text())
    assert written["kept_epochs"] == {"a": result.histories["a"].kept_epoch}


def _seen(data, view):
    data.view = view
    return data


# --- the recipe of the book that needs it, killed and resumed

CHANGES = [
    "data.options.n=24", "evaluate=null", "stages.cam.epochs=1", "stages.cam.batch_size=12", "stages.mask.epochs=8",
    "stages.mask.batch_size=6", "stages.mask.hold_out=0.5", "stages.mask.callbacks.0.args={area: [0, 1]}",
    "stages.mask.checkpoint_steps=1",
]  # fmt: skip
CHILD = """
import torch
from wsol_lib.engine import load_recipe, run
torch.set_num_threads({threads})  # sums depend on it in the last bits
run(load_recipe("scenes/weight-map", {changes!r}), {out!r}, device="cpu")
"""


@pytest.mark.slow
def test_kill_9_in_the_mask_stage_then_resume_gives_the_same_losses_and_the_same_epoch(tmp_path):
    code = CHILD.format(threads=torch.get_num_threads(), changes=CHANGES, out=str(tmp_path / "killed"))
    child = subprocess.Popen([sys.executable, "-c", code])
    written: set[int] = set()
    while len(written) < 6:  # checkpoints of the mask: some epochs are over
        assert child.poll() is None, "the child ended by itself"
        written |= {file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("stages/mask-*/checkpoint.*")}
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list((tmp_path / "killed").glob("stages/mask-*/weights.*"))

    whole = load_recipe("scenes/weight-map", CHANGES)
    resumed, expected = (run(whole, tmp_path / name, device="cpu", progress=False) for name in ("killed", "whole"))
    found, wanted = resumed.histories["mask"], expected.histories["mask"]
    assert found.losses() == wanted.losses() and len(found.epochs) == 8
    assert [e["completeness"] for e in found.epochs] == [e["completeness"] for e in wanted.epochs]
    assert found.kept_epoch == wanted.kept_epoch is not None
    for name, value in expected.localizer.state_dict().items():
        assert torch.equal(value, resumed.localizer.state_dict()[name])
