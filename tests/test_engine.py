"""The training loop, checkpoints, recipes, stages and the one loop that measures."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Exploding, Picky, Squares, Student, Teacher

from wsol_lib import engine
from wsol_lib.data import load
from wsol_lib.data.geometry import Frame
from wsol_lib.engine import (
    Callback,
    History,
    Optimizer,
    Recipe,
    Schedule,
    Stage,
    Training,
    TrainingFailed,
    evaluate,
    fit,
    load_recipe,
    localize,
    recipe_names,
    restore,
    run,
    save,
    to_original,
)
from wsol_lib.metrics import Evaluator, Protocol, peak_iou, pixel_average_precision
from wsol_lib.training import attention_kernel, epoch_order, make_optimizer, make_schedule, rank_batches
from wsol_lib.types import CheckpointError, RecipeError, SupervisionError

TRAINING = Training(epochs=3, batch_size=6, optimizer={"lr": 0.1}, schedule={"name": "cosine", "warmup": 0.5})


def weights(localizer):
    return torch.cat([p.detach().flatten() for p in localizer.parameters()])


class Stop(Callback):
    def __init__(self, epoch, error=None):
        self.epoch, self.error, self.seen = epoch, error, []

    def after_epoch(self, epoch, localizer, history):
        assert not localizer.training
        self.seen.append(epoch)
        if epoch == self.epoch and self.error:
            raise self.error
        return epoch == self.epoch

    def state(self):
        return {"seen": self.seen}

    def load(self, state):
        self.seen = state["seen"]


# --- fit


def test_fit_is_plain_sgd_written_out():
    training = Training(epochs=2, batch_size=8, optimizer={"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-3})
    fitted, plain, data = Teacher(), Teacher(), Squares()
    history = fit(fitted, data, training, seed=3)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-3)
    losses = []
    for epoch in range(2):
        for chosen in epoch_order(24, 3, epoch).split(8):
            images = torch.stack([data[int(i)]["image"] for i in chosen])
            parts = plain.losses({"image": images, "label": data.labels[chosen]})
            total = sum(parts.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
    assert torch.allclose(weights(fitted), weights(plain), atol=1e-7)
    assert history.losses() == pytest.approx(losses, abs=1e-6)
    assert len(history.epochs) == 2 and history.epochs[1]["total"] == pytest.approx(sum(losses[3:]) / 3)
    assert int(fitted.steps) == 6  # after_step, once an optimiser step


def test_history_names_the_losses():
    history = fit(Teacher(), Squares(), TRAINING)
    step = history.steps[0]
    assert step["total"] == pytest.approx(step["classification"] + step["smoothness"])
    assert history.losses("nothing")[0] != history.losses("nothing")[0]


def test_training_is_repeatable_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = Teacher(dropout=0.5), Teacher(dropout=0.5), Teacher(dropout=0.5)
    fit(one, Squares(), TRAINING)
    assert torch.equal(torch.rand(3), expected)
    fit(two, Squares(), TRAINING)
    fit(other, Squares(), TRAINING, seed=1)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_accumulation_equals_a_large_batch():
    large, parts = Teacher(), Teacher()
    history = fit(large, Squares(), TRAINING)
    split = fit(parts, Squares(), TRAINING.model_copy(update={"accumulate": 3}))
    assert torch.allclose(weights(large), weights(parts), atol=1e-6)
    assert split.losses() == pytest.approx(history.losses(), abs=1e-6)
    assert int(parts.steps) == int(large.steps) == 12


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_fp32(precision):
    plain, mixed = Teacher(), Teacher()
    history = fit(plain, Squares(), TRAINING)
    rounded = fit(mixed, Squares(), TRAINING.model_copy(update={"precision": precision}))
    assert rounded.losses() != history.losses()
    assert rounded.losses() == pytest.approx(history.losses(), rel=0.05)
    assert weights(mixed).dtype == torch.float32


def test_a_cpu_leaves_the_fused_kernel_in_half_precision_only():
    fused = torch.backends.cuda.flash_sdp_enabled  # the switch of all devices
    for device, precision, kept in [("cpu", "fp32", True), ("cpu", "bf16", False), ("cuda", "bf16", True)]:
        with attention_kernel(torch.device(device), precision):
            assert fused() == kept, (device, precision)
    assert fused()


def test_training_goes_around_the_fused_kernel_in_half_precision():
    seen = []

    class Watched(Teacher):
        def losses(self, batch):
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            return super().losses(batch)

    for precision in ("fp32", "bf16"):
        fit(Watched(), Squares(), TRAINING.model_copy(update={"precision": precision, "epochs": 1}))
    half = len(seen) // 2
    assert half and all(seen[:half]) and not any(seen[half:])


def test_workers_change_nothing():
    alone, helped = Teacher(), Teacher()
    fit(alone, Squares(), TRAINING)
    fit(helped, Squares(), TRAINING.model_copy(update={"workers": 2}))
    assert torch.equal(weights(alone), weights(helped))


def test_clip_bounds_the_gradient():
    free, clipped = Teacher(), Teacher()
    start = weights(free)
    once = Training(epochs=1, batch_size=24, optimizer={"lr": 1.0, "momentum": 0})
    fit(free, Squares(), once)
    fit(clipped, Squares(), once.model_copy(update={"clip": 1e-3}))
    assert (weights(free) - start).norm() > 1e-2
    assert (weights(clipped) - start).norm() == pytest.approx(1e-3, rel=1e-2)


def test_the_view_is_told_the_epoch():
    data = Squares()
    fit(Teacher(), data, TRAINING)
    assert data.epochs == [0, 1, 2]


def test_epochs_0_trains_nothing():
    teacher = Teacher()
    before = weights(teacher)
    assert fit(teacher, Squares(), Training(epochs=0)) == History()
    assert torch.equal(weights(teacher), before)


def test_a_loss_that_is_no_number_stops_before_it_does_harm():
    method = Exploding()
    with pytest.raises(TrainingFailed, match=r"'smoothness' is nan at step 2 of epoch 0"):
        fit(method, Squares(), TRAINING)
    assert torch.isfinite(weights(method)).all()


def test_a_missing_batch_key_is_named_before_training():
    with pytest.raises(RecipeError, match=r"Picky needs 'positive' in the batch, .*add a view"):
        fit(Picky(), Squares(), TRAINING)
    fit(Picky(), Squares(positive=torch.zeros(3, 16, 16)), TRAINING)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"batch_size": 25}, "larger than the training data"), ({"accumulate": 4}, "multiple of 4")],
)
def test_batches_that_cannot_be(changes, text):
    with pytest.raises(RecipeError, match=text):
        fit(Teacher(), Squares(), TRAINING.model_copy(update=changes))


def test_frozen_methods_are_refused():
    with pytest.raises(RecipeError, match="no parameter to train"):
        fit(Teacher().requires_grad_(False), Squares(), TRAINING)


def test_a_callback_may_stop_the_training():
    stop = Stop(1)
    history = fit(Teacher(), Squares(), TRAINING, callbacks=[stop])
    assert stop.seen == [0, 1] and len(history.epochs) == 2


def test_a_stopped_training_stays_stopped(tmp_path):
    fit(Teacher(), Squares(), TRAINING, out=tmp_path, callbacks=[Stop(1)])
    again = fit(Teacher(), Squares(), TRAINING, out=tmp_path, callbacks=[Stop(1)])
    assert len(again.epochs) == 2


def test_rank_batches_share_a_batch_without_overlap():
    order = torch.arange(26)
    whole = rank_batches(order, 8, 1, 0, 1, 0)
    assert whole == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    for step in range(3):
        parts = [rank_batches(order, 8, 2, rank, 2, step)[:2] for rank in range(2)]
        assert sorted(i for rank in parts for part in rank for i in part) == whole[step]


# --- optimiser and schedule


def test_head_rate_reaches_the_head_alone():
    training = Training(optimizer={"lr": 0.2}, head_rate=10)
    assert [group["lr"] for group in make_optimizer(Teacher(), training).param_groups] == pytest.approx([0.2, 2.0])
    assert [type(make_optimizer(Teacher(), Training(optimizer={"name": n}))).__name__ for n in ("adam", "adamw")] == [
        "Adam",
        "AdamW",
    ]


def rates(schedule, epochs=10, steps=5):
    training = Training(epochs=epochs, optimizer={"lr": 1.0}, schedule=schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_schedule(optimizer, training, steps)
    seen = []
    for _ in range(epochs * steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_schedules_follow_their_formulas():
    t = torch.arange(50) / 50
    assert rates({}) == [1.0] * 50
    assert rates({"name": "cosine"}) == pytest.approx(((1 + torch.cos(math.pi * t)) / 2).tolist(), abs=1e-6)
    assert rates({"name": "poly", "power": 0.9}) == pytest.approx(((1 - t) ** 0.9).tolist(), abs=1e-6)
    fall = [0.1 ** (step // 15) for step in range(50)]
    assert rates({"name": "step", "every": 3}) == pytest.approx(fall)
    both = [(1 - step / 50) ** 0.9 * 0.5 ** (step // 20) for step in range(50)]
    assert rates({"name": "poly", "every": 4, "gamma": 0.5}) == pytest.approx(both)


def test_warm_up_climbs_and_then_the_schedule_begins():
    seen = rates({"name": "cosine", "warmup": 2})
    assert seen[:11] == pytest.approx([(step + 1) / 11 for step in range(10)] + [1.0])
    assert seen[30] == pytest.approx(0.5, abs=1e-6)


# --- checkpoints


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("schedule", [{"name": "cosine", "warmup": 0.5}, {"name": "poly", "every": 2}])
def test_resume_is_exact(tmp_path, precision, schedule):
    training = Training(
        epochs=4, batch_size=6, optimizer={"name": "adam", "lr": 0.01}, schedule=schedule, precision=precision
    )
    whole, part, resumed = (Teacher(dropout=0.3, norm=True) for _ in range(3))
    expected = fit(whole, Squares(), training)
    with pytest.raises(KeyboardInterrupt):
        fit(part, Squares(), training, out=tmp_path, callbacks=[Stop(2, KeyboardInterrupt())])
    stop = Stop(-1)
    history = fit(resumed, Squares(), training, out=tmp_path, callbacks=[stop])
    assert history.losses() == expected.losses()
    assert [s["lr"] for s in history.steps] == [s["lr"] for s in expected.steps]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert stop.seen == [0, 1, 2, 3]


CHILD = """
import sys
import torch
torch.set_num_threads({threads})  # sums depend on it in the last bits
sys.path.insert(0, {tests!r})
from toys import Squares, Teacher
from wsol_lib.engine import Training, fit

class Slow(Squares):
    def __getitem__(self, i):
        import time
        time.sleep(0.005)
        return super().__getitem__(i)

training = Training(epochs=40, batch_size=6, checkpoint_steps=3, optimizer={{"lr": 0.1}}, schedule={{"name": "cosine"}})
fit(Teacher(dropout=0.3), Slow(), training, out={out!r})
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_then_resume_gives_the_same_losses(tmp_path):
    code = CHILD.format(tests=str(Path(__file__).parent), out=str(tmp_path), threads=torch.get_num_threads())
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert child.poll() is None, "the child ended by itself"
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()

    training = Training(epochs=40, batch_size=6, checkpoint_steps=3, optimizer={"lr": 0.1}, schedule={"name": "cosine"})
    state = restore(tmp_path / "checkpoint.safetensors", Teacher())
    assert 0 < len(json.loads(state["history"])["steps"]) < 160
    resumed, whole = Teacher(dropout=0.3), Teacher(dropout=0.3)
    history, expected = fit(resumed, Squares(), training, out=tmp_path), fit(whole, Squares(), training)
    assert history.losses() == expected.losses()
    assert torch.equal(weights(resumed), weights(whole))


def test_checkpoint_steps_resume_inside_an_epoch(tmp_path):
    class Dies(Teacher):
        def after_step(self):
            super().after_step()
            if int(self.steps) == 7:
                raise KeyboardInterrupt

    training = TRAINING.model_copy(update={"checkpoint_steps": 1})
    with pytest.raises(KeyboardInterrupt):
        fit(Dies(dropout=0.3), Squares(), training, out=tmp_path)
    resumed, whole = Dies(dropout=0.3), Teacher(dropout=0.3)
    assert int(restore(tmp_path / "checkpoint.safetensors", Dies())["place"][1]) == 2
    resumed.after_step = lambda: Teacher.after_step(resumed)
    assert fit(resumed, Squares(), training, out=tmp_path).losses() == fit(whole, Squares(), training).losses()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    fit(Teacher(), Squares(), TRAINING, out=tmp_path)
    with pytest.raises(CheckpointError, match="another recipe, seed or data"):
        fit(Teacher(), Squares(), TRAINING, seed=1, out=tmp_path)
    fit(Teacher(), Squares(), TRAINING, seed=1, out=tmp_path, resume=False)


def test_save_and_restore_bring_back_weights_buffers_and_state(tmp_path):
    teacher = Teacher()
    teacher.steps += 7
    state = {"a": [1, 2.5, None, "x"], "pair": (0.9, float("inf")), "nested": {3: torch.arange(4), "b": True}}
    save(tmp_path / "new" / "t.safetensors", teacher, state)
    other = Teacher(seed=9)
    back = restore(tmp_path / "new" / "t.safetensors", other)
    assert torch.equal(weights(other), weights(teacher)) and int(other.steps) == 7
    assert back["a"] == state["a"] and back["pair"] == state["pair"] and back["nested"]["b"] is True
    assert torch.equal(back["nested"][3], torch.arange(4))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.safetensors"]


def test_frozen_parts_are_not_in_the_checkpoint(tmp_path):
    teacher = Teacher()
    save(tmp_path / "s.safetensors", Student(teacher))
    strong, student = Teacher(seed=4), Student(Teacher(seed=4), seed=8)
    restore(tmp_path / "s.safetensors", student)
    assert torch.equal(weights(student.teacher.module), weights(strong))
    assert torch.equal(student.mask.weight, Student(teacher).mask.weight)


def test_bad_checkpoints_are_refused_in_one_sentence(tmp_path):
    good = tmp_path / "good.safetensors"
    save(good, Teacher(), {"x": torch.zeros(1000)})
    for length in (0, 5, 200, good.stat().st_size // 2, good.stat().st_size - 1):
        (tmp_path / "cut").write_bytes(good.read_bytes()[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            restore(tmp_path / "cut", Teacher())
    with pytest.raises(CheckpointError, match="method Teacher, but method Picky"):
        restore(good, Picky())
    with pytest.raises(CheckpointError, match="class count 3, but class count 5"):
        restore(good, Teacher(classes=5))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        restore(tmp_path / "absent", Teacher())
    nameless = Teacher(classes=5)
    nameless.classes = 3
    with pytest.raises(CheckpointError, match=r"'head.2.weight' is \[3, 8, 1, 1\] there and \[5, 8, 1, 1\] here"):
        restore(good, nameless)
    with pytest.raises(CheckpointError, match=r"'norm\.(weight|bias)' is missing"):
        restore(good, Teacher(norm=True))


def test_a_failed_restore_changes_nothing(tmp_path):
    save(tmp_path / "t", Teacher())
    other = Teacher(seed=3, norm=True)
    before = weights(other)
    with pytest.raises(CheckpointError):
        restore(tmp_path / "t", other)
    assert torch.equal(weights(other), before)


# --- the two-stage contract, by hand


def test_a_student_learns_from_a_frozen_teacher_and_leaves_it_alone():
    teacher = Teacher()
    fit(teacher, Squares(), TRAINING)
    before = weights(teacher)
    student = Student(teacher)
    history = fit(student, Squares(), Training(epochs=5, batch_size=6, optimizer={"lr": 1.0}))
    assert history.epochs[-1]["distillation"] < history.epochs[0]["distillation"]
    assert torch.equal(weights(teacher), before) and not teacher.training
    assert set(student.state_dict()) == {"mask.weight", "mask.bias"}


# --- recipes

RECIPE = {"name": "r", "data": {"name": "scenes"}, "stages": [{"name": "a", "method": "cam"}]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sed": 1}, "unknown recipe key 'sed'; did you mean 'seed'?"),
        ({"data": {"nme": "scenes"}}, "lacks the key 'data.name'|unknown recipe key 'data.nme'; did you mean 'name'"),
        ({"stages": [{"name": "a", "method": "cam", "epoch": 3}]}, "'stages.0.epoch'; did you mean 'epochs'?"),
        (
            {"stages": [{"name": "a", "method": "cam", "optimizer": {"weight_decy": 0}}]},
            "'stages.0.optimizer.weight_decy'; did you mean 'weight_decay'",
        ),
        (
            {"stages": [{"name": "a", "method": "cam", "epochs": "many"}]},
            "'stages.0.epochs' is 'many'; it should be a valid integer",
        ),
        (
            {"stages": [{"name": "a", "method": "cam", "precision": "fp8"}]},
            "'stages.0.precision' is 'fp8'; it should be 'fp32', 'bf16' or 'fp16'",
        ),
        ({"stages": [{"name": "a", "method": "cam", "schedule": {"name": "step"}}]}, "needs the key every"),
        ({"stages": [{"name": "a"}]}, "lacks the key 'stages.0.method'"),
        ({"stages": []}, "'stages' is"),
        ({"stages": [{"name": "a", "method": "cam", "needs": {"teacher": "b"}}]}, "stage 'a' needs an earlier 'b'"),
        ({"stages": [{"name": "a", "method": "cam"}] * 2}, "two stages are called 'a'"),
    ],
)
def test_a_faulty_recipe_is_explained(change, text):
    with pytest.raises(RecipeError, match=text) as caught:
        Recipe(**{**RECIPE, **change})
    assert "\n" not in str(caught.value)


def test_parts_are_validated_on_their_own():
    for part, wrong in ((Training, {"epohcs": 1}), (Optimizer, {"lrr": 1}), (Schedule, {"nme": "step"})):
        with pytest.raises(RecipeError, match="did you mean"):
            part(**wrong)
    assert Stage(name="a", method="cam", optimizer={"lr": "1e-3"}).lr == 1e-3  # YAML 1.1 reads 1e-3 as text


def test_overrides_reach_any_key():
    changes = ["stages.0.epochs=2", "stages.a.optimizer.lr=1e-3", "data.options.n=7", "evaluate.limit=5", "seed=3"]
    recipe = load_recipe(json.loads(json.dumps(RECIPE)), changes)
    stage = recipe.stages[0]
    assert (stage.epochs, stage.lr, recipe.data.options, recipe.seed) == (2, 1e-3, {"n": 7}, 3)
    for wrong, text in (("stages.4.epochs=2", "nowhere"), ("stages.b.epochs=2", "nowhere"), ("seed", "KEY=VALUE")):
        with pytest.raises(RecipeError, match=text):
            load_recipe(json.loads(json.dumps(RECIPE)), [wrong])
    with pytest.raises(RecipeError, match="did you mean 'epochs'"):
        load_recipe(json.loads(json.dumps(RECIPE)), ["stages.0.epoch=2"])


def test_recipe_files_are_read_safely(tmp_path):
    bad = tmp_path / "bad.yaml"
    for text in ("name: [", "- a", "name: !!python/object/apply:os.getcwd []"):
        bad.write_text(text)
        with pytest.raises(RecipeError):
            load_recipe(bad)
    with pytest.raises(RecipeError, match="no recipe 'scenes/cma'; did you mean 'scenes/cam'"):
        load_recipe("scenes/cma")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_library_is_valid(name):
    assert load_recipe(name).name == name


# --- stages, run, evaluate


@pytest.fixture
def toys(monkeypatch):
    from wsol_lib import engine
    from wsol_lib.methods import METHODS

    monkeypatch.setitem(METHODS, "teacher", "toys:Teacher")
    monkeypatch.setitem(METHODS, "student", "toys:Student")

    def load(name, split, *, size=None, view=None, n=24, **options):
        assert name == "squares" and not options
        data = Squares(n if split == "train" else 12, split)
        data.view = view
        return data

    monkeypatch.setattr(engine, "load", load)


TWO_STAGES = {
    "name": "two",
    "data": {"name": "squares"},
    "stages": [
        {"name": "classifier", "method": "teacher", "epochs": 2, "batch_size": 6, "optimizer": {"lr": 0.3}},
        {"name": "mask", "method": "student", "needs": {"teacher": "classifier"}, "epochs": 2, "batch_size": 6},
    ],
    "evaluate": {"args": {"resize": 16, "tau": "cross-fit", "taus": 50}},
}


def test_a_finished_stage_is_not_run_twice(toys, tmp_path):
    first = run(Recipe(**TWO_STAGES), tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/weights.safetensors")}
    assert len(kept) == 2 and not list(tmp_path.rglob("checkpoint*"))
    again = run(Recipe(**TWO_STAGES), tmp_path, train=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.histories == first.histories
    assert torch.equal(weights(again.localizer), weights(first.localizer))
    assert again.results["scores"] == first.results["scores"]
    assert not any(method.training for result in (first, again) for method in result.stages.values())

    other = json.loads(json.dumps(TWO_STAGES))
    other["stages"][1]["epochs"] = 3  # the classifier is the same, the mask is not
    run(Recipe(**other), tmp_path)
    assert len(list(tmp_path.glob("stages/classifier-*"))) == 1 and len(list(tmp_path.glob("stages/mask-*"))) == 2
    run(Recipe(**{**TWO_STAGES, "seed": 1}), tmp_path)
    assert len(list(tmp_path.glob("stages/classifier-*"))) == 2


def test_the_student_gets_the_trained_teacher_frozen(toys, tmp_path):
    result = run(Recipe(**TWO_STAGES), tmp_path)
    teacher = result.localizer.teacher.module
    assert teacher is result.stages["classifier"]
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert not torch.equal(weights(teacher), weights(Teacher()))
    untouched = run(Recipe(**{**TWO_STAGES, "stages": TWO_STAGES["stages"][:1]}), tmp_path)
    assert torch.equal(weights(untouched.localizer), weights(teacher))


def test_results_hold_what_a_score_depends_on(toys, tmp_path):
    result = run(Recipe(**TWO_STAGES), tmp_path)
    written = json.loads((result.folder / "results.json").read_text())
    assert written["n"] == 12 and written["recipe"]["name"] == "two" and written["protocol"]["resize"] == 16
    assert set(written["floors"]) == {"full box", "best centred box", "centred Gaussian"}
    assert {"commit", "versions", "hardware", "seed", "intervals", "scores"} <= set(written)
    low, high = written["intervals"]["gt_known"]
    assert low <= written["scores"]["gt_known"] <= high


def test_train_false_refuses_what_is_not_trained(toys, tmp_path):
    with pytest.raises(CheckpointError, match="'classifier' of two is not trained"):
        run(Recipe(**TWO_STAGES), tmp_path, train=False)


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ({"method": "techer"}, "no method 'techer'"),
        ({"args": {"dropuot": 0.1}}, "did you mean 'dropout'"),
        ({"views": [{"name": "Augmentd"}]}, "no view 'Augmentd'; did you mean 'Augmented'"),
        ({"views": [{"name": "Augmented", "args": {"crp": 8}}]}, "^stages.classifier.views: .*did you mean 'crop'"),
        ({"head": "pretrained"}, "takes no pretrained head"),
        ({"method": "cam", "head": "pretrained", "backbone": {"name": "resnet10t"}}, "none of ImageNet"),
        ({"method": "cam", "backbone": {"nme": "resnet10t"}}, "'nme'"),
    ],
)
def test_a_stage_that_cannot_be_built_is_explained(toys, tmp_path, stage, text):
    recipe = {**TWO_STAGES, "stages": [{**TWO_STAGES["stages"][0], **stage}]}
    with pytest.raises(RecipeError, match=text):
        run(Recipe(**recipe), tmp_path)


def test_pseudo_maps_of_one_stage_supervise_the_next(toys, tmp_path, monkeypatch):
    import toys as module

    from wsol_lib.methods import METHODS

    seen = []

    class Distilled(Teacher):
        needs = ("pseudo_maps",)

        def losses(self, batch):
            seen.append(batch["pseudo_maps"].shape)
            return {"map": (self.scores(batch["image"]).mean(1) - batch["pseudo_maps"]).pow(2).mean()}

    monkeypatch.setattr(module, "Distilled", Distilled, raising=False)
    monkeypatch.setitem(METHODS, "distilled", "toys:Distilled")
    view = {"name": "PseudoSupervision", "needs": {"maps": "classifier.maps"}}
    augmented = {"name": "Augmented", "args": {"resize": 16, "crop": 12}}
    last = {"name": "last", "method": "distilled", "views": [augmented, view], "batch_size": 6}
    run(Recipe(**{**TWO_STAGES, "stages": [TWO_STAGES["stages"][0], last]}), tmp_path)
    assert seen == [(6, 12, 12)] * 4


def test_boxes_of_a_stage_that_gives_maps_only_are_refused(toys, tmp_path):
    view = {"name": "PseudoSupervision", "needs": {"boxes": "classifier.boxes"}}
    last = {"name": "last", "method": "teacher", "views": [view], "batch_size": 6}
    with pytest.raises(RecipeError, match=r"'classifier.boxes', but the method of 'classifier' gives no boxes"):
        run(Recipe(**{**TWO_STAGES, "stages": [TWO_STAGES["stages"][0], last]}), tmp_path)


def test_boxes_go_back_to_original_pixels():
    frame = Frame(20, 10, (4, 2, 8, 8))
    boxes = torch.tensor([[10.0, 20.0, 60.0, 44.0]])
    assert torch.allclose(to_original(frame.boxes(boxes, (100, 50)), frame, (100, 50)), boxes)


PROTOCOL = Protocol(resize=16, tau=0.3)


def test_evaluate_equals_one_picture_at_a_time():
    teacher, data = Teacher(), Squares(10, "test")
    found = evaluate(teacher, data, PROTOCOL, batch_size=4)
    by_hand = Evaluator(PROTOCOL)
    for i in range(10):
        label = data.labels[i : i + 1]
        one = teacher.eval().localize(data[i]["image"][None], label)
        by_hand.update(one, PROTOCOL.to_frame([data.boxes(i)], data.image_sizes[:1]), labels=label)
    assert found.compute() == by_hand.compute()
    assert teacher.training is False and data.view is None


def test_evaluate_scores_pixels_where_there_are_masks():
    protocol = Protocol(resize=32, taus=20)
    data = load("scenes", "test", size=32, n=6, view=protocol)
    found = evaluate(Teacher(classes=12), data, protocol, batch_size=4)
    maps = [protocol.normalize(m) for m in localize(Teacher(classes=12), data).maps.double().numpy()]
    maps, masks = torch.from_numpy(np.stack(maps)), torch.stack([data[i]["mask"] for i in range(6)])
    assert found.compute().pxap == pytest.approx(pixel_average_precision(maps, masks))
    assert found.compute().piou == pytest.approx(peak_iou(maps, masks))
    assert found.pixel_floors()["full box"]["pxap"] == pytest.approx(100 * masks.float().mean().item())


def test_results_hold_pixel_scores_beside_their_floors(tmp_path):
    whole = load_recipe("smoke", ["stages.0.epochs=0", "data.options.n=24", "evaluate.options.n=12"])
    results = run(whole, tmp_path, device="cpu").results
    assert results["kept_epochs"] == {"cam": None}
    assert {0 < results["scores"][name] < 100 for name in ("pxap", "piou")} == {True}
    floors = results["floors"]
    assert 0 < floors["full box"]["pxap"] == pytest.approx(floors["full box"]["piou"])
    assert floors["centred Gaussian"]["pxap"] > floors["full box"]["pxap"]
    assert floors["best centred box"]["pxap"] is None


def test_evaluate_gives_labels_only_to_methods_that_use_them():
    class Nosy(Student):
        def localize(self, images, labels=None):
            assert labels is None
            return super().localize(images, labels)

    assert evaluate(Nosy(Teacher()), Squares(6, "test"), PROTOCOL).compute().n == 6


def test_names_are_unknown_where_the_method_learned_other_classes(tmp_path):
    scores = evaluate(Teacher(), Squares(9, "test"), PROTOCOL, names=False).compute()
    assert np.isnan(scores.top1_cls) and np.isnan(scores.top1_loc) and not np.isnan(scores.gt_known)
    small = ["stages.0.epochs=0", "data.options.n=24", "evaluate.options.n=12"]
    for classes, known in {12: True, 6: False}.items():
        recipe = load_recipe("smoke", [*small, f"evaluate.options.classes={classes}"])
        scores = run(recipe, tmp_path, device="cpu", progress=False).results["scores"]
        assert (scores["top1_cls"] is not None) == known
        assert scores["gt_known"] is not None


def test_evaluate_limit_spreads_over_the_data_and_keeps_the_mode():
    teacher = Teacher().train()
    assert evaluate(teacher, Squares(30, "test"), PROTOCOL, limit=7).compute().n == 7
    assert teacher.training


def test_evaluate_refuses_boxes_of_the_training_split_and_another_view():
    with pytest.raises(SupervisionError):
        evaluate(Teacher(), Squares(6, "train"), PROTOCOL)
    data = Squares(6, "test")
    data.view = Protocol(resize=8)
    with pytest.raises(ValueError, match="another protocol"):
        evaluate(Teacher(), data, PROTOCOL)


def test_localize_keeps_the_order_of_the_data():
    data = Squares(7)
    found = localize(Teacher(), data, batch_size=3)
    single = Teacher().eval().localize(data[5]["image"][None], data.labels[5:6])
    assert len(found) == 7 and torch.allclose(found.maps[5], single.maps[0], atol=1e-6)


def test_an_override_changes_no_mapping_of_the_caller_and_must_be_yaml():
    contents = load_recipe("smoke").model_dump(mode="json")
    assert load_recipe(contents, ["stages.0.epochs=7"]).stages[0].epochs == 7
    assert contents["stages"][0]["epochs"] != 7
    with pytest.raises(RecipeError, match="gives no YAML"):
        load_recipe("smoke", ["stages.0.args=[1"])


def test_a_stage_is_known_by_the_contents_of_its_weights_file(tmp_path):
    file = tmp_path / "weights.safetensors"
    recipe = load_recipe("smoke", [f"stages.0.backbone.weights={file}"])
    data = load("scenes", "train", size=64, n=12)
    hashes = []
    for contents in (b"one", b"two", b"one"):
        file.write_bytes(contents)
        assert engine._weights_of(recipe.stages[0])
        hashes.append(engine._stage_hash(recipe, recipe.stages[0], data, {}))
    assert hashes[0] == hashes[2] != hashes[1]
    assert engine._weights_of(Stage(name="a", method="cam", backbone={"name": "resnet18"})) is None
