"""Teachers and student: each loss by hand and by its gradient, masks picture by picture, and what stays frozen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ci_cam import (
    CLASSES,
    PLACES,
    SIZE,
    STAGE,
    backbone,
    ci_cam,
    frozen_norms,
    opened,
    pictures,
    recipe,
    same,
    state,
)
from test_distributed import together
from toys import Squares

from wsol_lib import engine, maps
from wsol_lib.data import load
from wsol_lib.data.views import Choices
from wsol_lib.methods.ci_cam import CICAM, combine
from wsol_lib.methods.kd_ci_cam import (
    KDCICAM,
    ClassificationTeacher,
    LocalizationTeacher,
    area_loss,
    difference_loss,
    foreground_mask,
    logit_distillation,
    map_distillation,
)
from wsol_lib.training import epoch_order, rank_batches
from wsol_lib.types import RecipeError


def numbers(*shape, seed=0, scale=1.0, grad=False):
    values = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_(grad)


# --- distillation of logits, eq. 10


def test_both_readings_by_hand():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    divergence = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert logit_distillation(student, teacher, 1.0).item() == pytest.approx(divergence)
    released = 0.8 * (math.log(0.8) - 0.5) + 0.2 * (math.log(0.2) - 0.5)
    assert logit_distillation(student, teacher, 1.0, "code").item() == pytest.approx(released)


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_logits_picture_by_picture(reading):
    student, teacher, t, total = numbers(5, 7), numbers(5, 7, seed=1, scale=3), 3.0, 0.0
    for s, w in zip(student.double(), teacher.double(), strict=True):
        p_s, p_t = (s / t).softmax(0), (w / t).softmax(0)
        for a, b in zip(p_s.tolist(), p_t.tolist(), strict=True):
            total += t**2 * b * (math.log(b) - math.log(a)) if reading == "paper" else b * (math.log(b) - a)
    assert logit_distillation(student, teacher, t, reading).item() == pytest.approx(total / 5, rel=1e-5)


def test_at_equal_logits_the_divergence_has_no_gradient_and_the_released_form_has():
    teacher = numbers(4, 6, scale=2)
    gradients = {}
    for reading in ("paper", "code"):
        student = teacher.clone().requires_grad_()
        loss = logit_distillation(student, teacher, 2.0, reading)
        loss.backward()
        gradients[reading] = student.grad
        if reading == "paper":
            assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradients["paper"].abs().max() < 1e-6 < 1e-3 < gradients["code"].abs().max()


def test_the_released_form_pulls_every_probability_by_the_teacher_s(monkeypatch):
    """Its derivative by p_s is -p_t: a softmax that gives leaves shows it."""
    teacher, leaf = numbers(1, 5), torch.full((1, 5), 0.2, requires_grad=True)
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *_: leaf)
    logit_distillation(numbers(1, 5, seed=1), teacher, 1.0, "code").backward()
    monkeypatch.undo()
    torch.testing.assert_close(leaf.grad, -teacher.softmax(1))


def test_the_released_form_drives_the_student_to_certainty():
    """Least where all probability is on the teacher's best class, not where the student says what the teacher says."""
    teacher = torch.tensor([[1.0, 0.5, 0.0]])
    sure = torch.tensor([[100.0, 0.0, 0.0]])
    assert logit_distillation(sure, teacher, 1.0, "code") < logit_distillation(teacher, teacher, 1.0, "code")
    assert logit_distillation(sure, teacher, 1.0) > logit_distillation(teacher, teacher, 1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 20), st.floats(-50, 50))
def test_the_divergence_is_not_negative_and_blind_to_shifts(seed, temperature, shift):
    student, teacher = numbers(3, 5, seed=seed, scale=4), numbers(3, 5, seed=seed + 1, scale=4)
    loss = logit_distillation(student, teacher, temperature).item()
    assert loss >= 0
    assert logit_distillation(student + shift, teacher, temperature).item() == pytest.approx(loss, rel=1e-2, abs=1e-4)


def test_temperature_squared_keeps_the_gradient():
    """For large T the gradient tends to the difference of centred logits over K, whatever T is (Hinton et al.)."""
    teacher, gradients = numbers(1, 4), []
    for temperature in (100.0, 1000.0):
        student = numbers(1, 4, seed=1, grad=True)
        logit_distillation(student, teacher, temperature).backward()
        gradients.append(student.grad)
    student = numbers(1, 4, seed=1)
    expected = ((student - student.mean()) - (teacher - teacher.mean())) / 4
    torch.testing.assert_close(gradients[1], expected, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(*gradients, atol=1e-2, rtol=5e-2)


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_extreme_logits_stay_finite(reading):
    student, teacher = torch.tensor([[1e4, -1e4]], requires_grad=True), torch.tensor([[-1e4, 1e4]])
    loss = logit_distillation(student, teacher, 1.0, reading)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


# --- distillation of maps, eqs. 14 and 15


def test_maps_by_hand():
    student, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    assert map_distillation(student, teacher, 1.0).item() == pytest.approx((0 + 0.25**2) / 2)  # 1/2, 1/2 from 1/2, 3/4
    literal = map_distillation(student, teacher, 1.0, "paper").item()
    assert literal == pytest.approx(0.25**2)  # 1/2, 1/2 from 1/4, 3/4
    assert map_distillation(student, teacher, 1.0, "paper", rescale=True).item() == pytest.approx(4 * literal)
    assert map_distillation(student, 2 * teacher, 2.0).item() == pytest.approx((0 + 0.25**2) / 2)


def test_a_softmax_over_all_entries_leaves_no_gradient():
    """The sizes of CUB: 200 classes of 14 x 14 places, maps of deviation 5, T = 15."""
    values = {}
    for reading, rescale in (("code", False), ("paper", False), ("paper", True)):
        student, teacher = numbers(2, 200, 14, 14, scale=5, grad=True), numbers(2, 200, 14, 14, seed=1, scale=5)
        loss = map_distillation(student, teacher, 15.0, reading, rescale=rescale)
        loss.backward()
        values[reading, rescale] = (loss.item(), student.grad.abs().max().item())
    sigmoid, literal, rescaled = values.values()
    assert sigmoid[0] == pytest.approx(1.3e-2, rel=0.1) and literal[0] == pytest.approx(1.5e-10, rel=0.1)
    assert sigmoid[1] / literal[1] > 1e6
    n = 200 * 14 * 14
    assert rescaled == pytest.approx((n**2 * literal[0], n**2 * literal[1]), rel=1e-3)


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_equal_maps_cost_nothing_and_a_batch_is_its_pictures(reading):
    student, teacher = numbers(4, 3, 2, 5, scale=4), numbers(4, 3, 2, 5, seed=1, scale=4)
    assert map_distillation(student, student, 2.0, reading) == 0
    each = [map_distillation(student[i : i + 1], teacher[i : i + 1], 2.0, reading) for i in range(4)]
    torch.testing.assert_close(map_distillation(student, teacher, 2.0, reading), torch.stack(each).mean())


@pytest.mark.parametrize("loss", [logit_distillation, map_distillation])
@pytest.mark.parametrize("reading", ["paper", "code"])
def test_the_teacher_takes_no_gradient_and_no_pictures_cost_nothing(loss, reading):
    shape = (3, 4) if loss is logit_distillation else (3, 4, 2, 2)
    student, teacher = numbers(*shape, grad=True), numbers(*shape, seed=1, grad=True)
    loss(student, teacher, 2.0, reading).backward()
    assert teacher.grad is None and student.grad.any()
    student = numbers(*shape, grad=True)
    none = loss(student[:0], teacher[:0], 2.0, reading)
    none.backward()
    assert none == 0 and not student.grad.any()


def test_losses_are_summed_in_single_precision():
    """Half precision gives the inputs, not the sums: a mean of many small squares would stop growing."""
    student, teacher = (numbers(2, 50, 6, 6, seed=seed).bfloat16() for seed in (0, 1))
    for loss in (map_distillation, lambda *given: area_loss(given[0].flatten(1, 2) + 3), logit_distillation):
        given = [x[:, :, 0, 0] if loss is logit_distillation else x for x in (student, teacher)]
        found, expected = loss(*given, 2.0), loss(*(x.float() for x in given), 2.0)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


# --- area, foreground, difference


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([2, 4, 16]), st.integers(0, 99))
def test_the_area_is_the_same_before_and_after_up_sampling(height, width, factor, seed):
    heatmap = numbers(2, height, width, seed=seed).abs()
    larger = maps.resize(heatmap, (factor * height, factor * width), "bilinear")
    torch.testing.assert_close(area_loss(larger), area_loss(heatmap))
    assert area_loss(heatmap).item() == pytest.approx(heatmap.double().mean().item(), rel=1e-5)


def test_masks_picture_by_picture():
    heatmap = numbers(3, 4, 5).abs()
    heatmap = heatmap - heatmap.amin((1, 2), keepdim=True)
    mask = foreground_mask(heatmap, (40, 50), 0.3)
    assert mask.shape == (3, 1, 40, 50) and set(mask.unique().tolist()) == {0.0, 1.0}
    for one, found in zip(heatmap, mask, strict=True):
        shown = F.interpolate(one[None, None], (40, 50), mode="bilinear")[0, 0]
        cut = 0.3 * shown.max()
        expected = [[1.0 if value > cut else 0.0 for value in row] for row in shown]
        assert found[0].tolist() == expected


def test_a_theta_of_0_leaves_out_no_more_than_the_minimum():
    heatmap = numbers(1, 6, 6)
    heatmap = heatmap - heatmap.min()
    mask = foreground_mask(heatmap, (6, 6), 0.0)
    assert mask.sum() == 35 and mask[0, 0].flatten()[heatmap.argmin()] == 0
    assert not foreground_mask(torch.zeros(1, 3, 3), (6, 6), 0.0).any()  # a flat map has no foreground


def test_a_mask_lets_no_gradient_through():
    heatmap = numbers(1, 4, 4, grad=True)
    assert not foreground_mask(heatmap, (8, 8), 0.1).requires_grad


def test_differences_by_hand():
    fore, back, whole = (torch.tensor([p]).log() for p in ([0.8, 0.2], [0.5, 0.5], [0.9, 0.1]))
    label = torch.tensor([0])
    diff, aux = (loss.item() for loss in difference_loss(fore, back, whole, label))
    assert diff == pytest.approx(-math.log(0.8))  # softmax of ln(.8/.5), ln(.2/.5) is .8, .2
    odds = math.sqrt(0.8 * 0.9 / (0.2 * 0.1))  # half of the sum of logits
    assert aux == pytest.approx(-math.log(odds / (1 + odds)), rel=1e-5)
    diff, aux = (loss.item() for loss in difference_loss(fore, back, whole, label, "paper"))
    assert diff == pytest.approx(-math.log(0.3), rel=1e-5) and aux == pytest.approx(-math.log(0.6), rel=1e-5)


def test_the_probability_form_is_dead_where_the_background_is_surer():
    label = torch.tensor([0])
    for reading, alive in (("code", True), ("paper", False)):
        fore, back, whole = (numbers(1, 3, seed=i, grad=True) for i in range(3))
        with torch.no_grad():
            for logits, first in ((fore, -2.0), (back, 3.0), (whole, -6.0)):
                logits[0, 0] = first
        losses = difference_loss(fore, back, whole, label, reading)
        if reading == "paper":
            assert losses[0].item() == losses[1].item() == pytest.approx(-math.log(1e-6), rel=1e-5)
        sum(losses).backward()
        assert all(bool(logits.grad.any()) is alive for logits in (fore, back, whole))
        assert all(logits.grad.isfinite().all() for logits in (fore, back, whole))


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_differences_are_means_over_the_batch(reading):
    parts, labels = [numbers(5, 4, seed=i, scale=2) for i in range(3)], torch.tensor([0, 3, 1, 1, 2])
    each = [difference_loss(*(p[i : i + 1] for p in parts), labels[i : i + 1], reading) for i in range(5)]
    for found, ones in zip(difference_loss(*parts, labels, reading), zip(*each, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(ones).mean())


# --- the teachers


@pytest.fixture
def batch():
    return {
        "image": pictures(6),
        "label": torch.tensor([2, 0, 3, 2, 1, 0]),
        "view": torch.tensor([0, 1, 2, 1, 2, 2]),
    }


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


def through_masks(localizer, batch, theta):
    """Logits of the second look, of the foreground and of the background, one picture at a time; and the maps H."""
    rows = []
    for image in batch["image"]:
        x = localizer.network.normalize(image[None])
        seen = localizer.branches(x)
        heatmap = combine(seen.cams, seen.logits, "ci_quadratic")
        shown = F.interpolate(heatmap[None], x.shape[-2:], mode="bilinear")
        mask = (shown > theta * shown.max()).float()
        whole, fore, back = (localizer.head(localizer.network(x * part)) for part in (1, mask, 1 - mask))
        rows.append((seen.plain_logits, seen.logits, fore, back, heatmap))
        torch.testing.assert_close(whole, seen.plain_logits, atol=1e-4, rtol=1e-4)
    return (torch.cat(parts) for parts in zip(*rows, strict=True))


def test_the_classification_teacher_picture_by_picture(batch):
    localizer = ci_cam(ClassificationTeacher, theta=0.4, foreground=0.6, area=0.3).eval()
    plain, logits, fore, _, heatmap = through_masks(localizer, batch, 0.4)
    labels = batch["label"]
    expected = {
        "plain": F.cross_entropy(plain, labels).item(),
        "enhanced": F.cross_entropy(logits, labels).item(),
        "foreground": 0.6 * F.cross_entropy(fore, labels).item(),
        "area": 0.3 * heatmap.mean().item(),
    }
    assert values(localizer(batch)) == pytest.approx(expected, rel=2e-3)
    assert not torch.allclose(fore, plain, rtol=1e-2)


@pytest.mark.parametrize("reading", [None, "code", "paper"])
def test_the_localization_teacher_picture_by_picture(reading, batch):
    localizer = ci_cam(LocalizationTeacher, theta=0.4, difference=0.7, area=0.2, faithful_to=reading).eval()
    plain, logits, fore, back, heatmap = through_masks(localizer, batch, 0.4)
    labels = batch["label"]
    diff, aux = difference_loss(fore, back, logits, labels, reading or "code")
    expected = {
        "plain": F.cross_entropy(plain, labels).item(),
        "enhanced": F.cross_entropy(logits, labels).item(),
        "difference": 0.7 * diff.item(),
        "auxiliary": 0.7 * aux.item(),
        "area": 0.2 * heatmap.mean().item(),
    }
    assert values(localizer(batch)) == pytest.approx(expected, rel=5e-3)
    assert localizer.pool.faithful_to == (reading or "code")


@pytest.mark.parametrize("kind", [ClassificationTeacher, LocalizationTeacher])
def test_masked_pictures_pass_by_the_pool(kind, batch):
    localizer, looked_up, passed = ci_cam(kind).train(), [], []
    localizer.pool.register_forward_hook(lambda _, given, __: looked_up.append(len(given[0])))
    localizer.network.register_forward_hook(lambda _, given, __: passed.append(given[0]))
    localizer(batch)
    assert looked_up == [6] and len(passed) == (2 if kind is ClassificationTeacher else 3)
    inputs = passed[0]
    for masked in passed[1:]:  # what is hidden becomes 0, the mean colour
        assert ((masked == inputs) | (masked == 0)).all() and (masked == 0).any()
    if kind is LocalizationTeacher:
        torch.testing.assert_close(passed[1] + passed[2], inputs)


@pytest.mark.parametrize("kind", [ClassificationTeacher, LocalizationTeacher])
@pytest.mark.parametrize("reading", [None, "paper", "code"])
def test_norms_follow_masked_pictures_only_in_the_code(kind, reading, batch):
    def running(localizer):
        return torch.cat([norm.running_var for norm in norms_of(localizer)])

    teacher = ci_cam(kind, theta=0.4, faithful_to=reading).train()
    plain = ci_cam(CICAM).train()
    plain.load_state_dict(teacher.state_dict())
    plain(batch)
    losses = teacher(batch)
    assert torch.allclose(running(teacher), running(plain)) == (reading != "code")
    assert {norm.momentum for norm in norms_of(teacher)} == {norm.momentum for norm in norms_of(plain)} != {0}
    for norm in norms_of(plain):  # masked pictures are normed by themselves all the same
        norm.eval()
    name = "foreground" if kind is ClassificationTeacher else "difference"
    before = losses[name].item()
    teacher.load_state_dict(plain.state_dict())
    for norm in norms_of(teacher):
        norm.eval()
    assert teacher(batch)[name].item() != pytest.approx(before, rel=1e-3)


def norms_of(localizer):
    return [part for part in localizer.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def test_the_masks_teach_the_network_but_not_through_the_map(batch):
    """Without a price on its area, and at theta 0, the gradient of CE(fore) is that of a given picture."""
    localizer = ci_cam(ClassificationTeacher, theta=0.4, area=0.0).eval()
    seen = []
    localizer.network.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    foreground = localizer(batch)["foreground"]
    fore = seen[-1]
    assert not fore.requires_grad
    parameters = [p for p in localizer.parameters() if p.requires_grad]
    found = torch.autograd.grad(foreground, parameters, allow_unused=True)
    given = F.cross_entropy(localizer.head(localizer.network(fore)), batch["label"])
    for one, other in zip(found, torch.autograd.grad(given, parameters, allow_unused=True), strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


# --- the student


def teachers():
    one, two = ci_cam(ClassificationTeacher), ci_cam(LocalizationTeacher)
    with torch.no_grad():
        for i, teacher in enumerate((one, two), 1):
            teacher.head.weight.add_(numbers(*teacher.head.weight.shape, seed=i))
            teacher.pool.pool.copy_(teacher.pool.pool.roll(i, dims=0))
    return {"classification_teacher": one, "localization_teacher": two}


def student(**options):
    return ci_cam(KDCICAM, **{**teachers(), "logit_temperature": 3.0, "map_temperature": 5.0, **options})


@pytest.mark.parametrize("reading", [None, "paper", "code"])
def test_the_student_picture_by_picture(reading, batch):
    localizer = student(alpha=0.7, faithful_to=reading).eval()
    by_logits, by_maps = localizer.classification_teacher.module, localizer.localization_teacher.module
    logits, wanted_maps, said_maps = [], [], []
    for image, view, label in zip(batch["image"], batch["view"].tolist(), batch["label"], strict=True):
        said = localizer.branches(localizer.network.normalize(image[None]))
        logits.append(F.cross_entropy(said.logits, label[None]))
        if view == 1:
            wanted = by_logits.answer(by_logits.network.normalize(image[None]))[0]
            said_maps.append(logit_distillation(said.logits, wanted, 3.0, reading or "paper"))
        if view == 2:
            wanted = by_maps.answer(by_maps.network.normalize(image[None]))[1]
            wanted_maps.append(map_distillation(said.cams, wanted, 5.0, reading or "code"))
    assert (len(said_maps), len(wanted_maps)) == (2, 3)
    expected = {
        "classification": 0.3 * torch.stack(logits).mean().item(),
        "logit_distillation": 0.7 * torch.stack(said_maps).mean().item(),
        "map_distillation": 0.7 * torch.stack(wanted_maps).mean().item(),
    }
    assert values(localizer(batch)) == pytest.approx(expected, rel=5e-3, abs=1e-12)


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_batch_of_one_view_is_taught_by_one(view, batch):
    losses = student().train()({**batch, "view": torch.full((6,), view)})
    costs = [losses[name].item() != 0 for name in ("logit_distillation", "map_distillation")]
    assert costs == [view == 1, view == 2]
    sum(losses.values()).backward()


def test_a_teacher_sees_its_own_pictures_only(batch):
    localizer, seen = student().train(), {}
    for name in ("classification_teacher", "localization_teacher"):
        network = getattr(localizer, name).module.network
        network.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0]}))
    localizer(batch)
    normalized = localizer.network.normalize(batch["image"])
    torch.testing.assert_close(seen["classification_teacher"], normalized[batch["view"] == 1])
    torch.testing.assert_close(seen["localization_teacher"], normalized[batch["view"] == 2])


def test_a_step_moves_the_student_and_no_teacher(batch):
    localizer = student(rate=0.5).train()
    frozen = [localizer.classification_teacher.module, localizer.localization_teacher.module]
    before, learner = [state(teacher) for teacher in frozen], state(localizer)
    optimizer = torch.optim.SGD(localizer.parameters(), lr=0.1)
    sum(localizer({**batch, "label": localizer.localize(batch["image"]).logits.argmax(1)}).values()).backward()
    optimizer.step()
    localizer.after_step()
    assert all(same(teacher, then) for teacher, then in zip(frozen, before, strict=True))  # norms and pools too
    assert not any(part.training for teacher in frozen for part in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for teacher in frozen for p in teacher.parameters())
    assert not any("teacher" in name for name in localizer.state_dict())
    moved = {name for name, value in localizer.state_dict().items() if not torch.equal(value, learner[name])}
    assert {"pool.pool", "head.weight", "pool.project.weight"} <= moved
    assert frozen[0].pool.pool.data_ptr() != localizer.pool.pool.data_ptr()


def test_what_the_teachers_say_leans_on_their_own_pools(batch):
    localizer = student().eval()
    before = values(localizer(batch))
    for name, loss in (("classification_teacher", "logit_distillation"), ("localization_teacher", "map_distillation")):
        getattr(localizer, name).module.pool.pool.zero_()
        after = values(localizer(batch))
        assert {key for key in after if after[key] != before[key]} == {loss}
        before = after


def test_a_teacher_may_be_left_out(batch):
    alone = student(classification_teacher=None, localization_teacher=None).eval()
    assert list(alone(batch)) == ["classification"]
    assert list(student(classification_teacher=None)(batch)) == ["classification", "map_distillation"]
    assert list(student(localization_teacher=None)(batch)) == ["classification", "logit_distillation"]


def test_a_teacher_with_other_maps_is_refused():
    wide = CICAM(backbone(), CLASSES, size=2 * SIZE, non_local=PLACES)
    with pytest.raises(RecipeError, match=r"a teacher's class maps are \[4, 8, 8\] .*the student's \[4, 4, 4\]"):
        student(localization_teacher=wide)
    with pytest.raises(RecipeError, match=r"are \[5, 4, 4\]"):
        student(classification_teacher=CICAM(backbone(), 5, size=SIZE, non_local=PLACES))


def test_pictures_without_a_view_are_refused():
    data = load("scenes", "train", size=SIZE, n=12, classes=CLASSES)
    with pytest.raises(RecipeError, match="'view'"):
        engine.fit(student(), data, engine.Training(batch_size=6), progress=False)


# --- through the engine


def taught_recipe():
    args = {**STAGE["args"], "size": SIZE}
    teaching = [
        {**STAGE, "name": "knows", "method": "classification-teacher", "args": args},
        {**STAGE, "name": "finds", "method": "localization-teacher", "args": {**args, "theta": 0.1}},
    ]
    learning = {
        **STAGE,
        "name": "student",
        "method": "kd-ci-cam",
        "args": {**args, "rate": 0.1},
        "needs": {"classification_teacher": "knows", "localization_teacher": "finds"},
        "views": [{"name": "Choices", "choices": [{"resize": 36, "crop": SIZE}] * 2 + [
            {"random_resized": [0.5, 1.0], "crop": SIZE}
        ]}],
    }  # fmt: skip
    return recipe(*teaching, learning)


def test_a_recipe_trains_two_teachers_and_a_student(tmp_path):
    found = engine.run(taught_recipe(), tmp_path, device="cpu", progress=False)
    assert {"foreground", "area"} <= set(found.histories["knows"].steps[0])
    assert {"difference", "auxiliary"} <= set(found.histories["finds"].steps[0])
    steps = found.histories["student"].steps
    assert {"classification", "logit_distillation", "map_distillation"} <= set(steps[0])
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert found.localizer.localization_teacher.module is found.stages["finds"]
    scores = found.evaluator.compute()
    assert scores.n == 6 and math.isfinite(scores.gt_known) and math.isfinite(scores.top1_cls)


# --- several processes


def small(kind, seed, **options):
    torch.manual_seed(seed)
    return opened(kind(backbone(), 3, size=SIZE, non_local=["stage3"], **options))


def fitted():
    """Two teachers and their student on coloured squares: weights and pools of all."""
    data, training = Squares(24, size=SIZE), engine.Training(epochs=1, batch_size=4, optimizer={"lr": 1e-4})
    one = frozen_norms(small(ClassificationTeacher, 1, theta=0.3, rate=0.3))
    two = frozen_norms(small(LocalizationTeacher, 2, theta=0.3, rate=0.3))
    for teacher in (one, two):
        engine.fit(teacher, data, training, progress=False)
    pupil = frozen_norms(small(KDCICAM, 3, classification_teacher=one, localization_teacher=two, rate=0.3))
    history = engine.fit(pupil, Choices(data, 3), training, progress=False)
    weights = torch.cat([p.detach().flatten() for method in (one, two, pupil) for p in method.parameters()])
    pools = torch.stack([method.pool.pool for method in (one, two, pupil)])
    losses = [history.losses(name) for name in ("classification", "logit_distillation", "map_distillation")]
    return {"weights": weights, "pools": pools, "losses": losses}


def work(rank, folder):
    return fitted()


@pytest.mark.slow
def test_two_processes_teach_like_one(tmp_path):
    """Two pictures a process and step: often one of them has none for a teacher."""
    views, order = Choices(Squares(24, size=SIZE), 3), epoch_order(24, 0, 0)
    parts = [{views.choice(i) for i in part} for rank in (0, 1) for part in rank_batches(order, 4, 1, rank, 2, 0)]
    assert all(any(view not in part for part in parts) for view in (1, 2))
    alone = fitted()
    for report in together(work, tmp_path):
        for found, expected in zip(report["losses"], alone["losses"], strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)
        torch.testing.assert_close(report["pools"], alone["pools"], atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(report["weights"], alone["weights"], atol=1e-5, rtol=1e-3)
