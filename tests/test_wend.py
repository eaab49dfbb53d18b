"""WEND: the entropy by hand and by a slow loop, the detectors' pieces, and what pictures without a box do to them."""

from __future__ import annotations

import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsol_lib import engine
from wsol_lib.backbones import create
from wsol_lib.boxes import iou
from wsol_lib.data import load
from wsol_lib.data.views import Augmented, PseudoSupervision
from wsol_lib.detectors import DETECTORS, FCOS, CentredAnchors, DeformableDETR, FasterRCNN
from wsol_lib.methods.cam import CAM
from wsol_lib.methods.wend import SCR, WEND, binary_entropy, solid, weighted_entropy
from wsol_lib.recipe import Training
from wsol_lib.types import RecipeError

CLASSES = 12
SMALL = {
    "fcos": {},
    "faster-rcnn": {"width": 64, "proposals": 40, "regions": 16},
    "deformable-detr": {"width": 64, "layers": 2, "queries": 12, "levels": 2},
}
RECIPE = SimpleNamespace(head_rate=10.0)


def trunk(stages=("last",), output_stride=8):
    torch.manual_seed(0)
    return create("resnet10t", stages=stages, output_stride=output_stride, channels=[24, 48, 64, 96], stem_width=16)


def wend(detector="fcos", **options):
    if detector == "deformable-detr":
        pytest.importorskip("transformers")
    backbone = options.pop("backbone", None) or trunk()
    torch.manual_seed(1)
    return WEND(backbone, CLASSES, detector=detector, **{"options": SMALL[detector], **options})


def scr(**options):
    backbone = trunk()
    torch.manual_seed(1)
    return SCR(backbone, CLASSES, **options)


METHODS = {"scr": scr, **{name: lambda name=name, **options: wend(name, **options) for name in DETECTORS}}


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", "test", size=64, n=8, seed=5)


@pytest.fixture
def batch(scenes):
    images = torch.stack([scenes[i]["image"] for i in range(8)])
    return {"image": images, "pseudo_boxes": [scenes.boxes(i).float() for i in range(8)]}


def total(losses):
    return torch.stack(list(losses.values())).sum()


def train(model, batch, steps, rate):
    optimizer = torch.optim.AdamW(model.train().parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        total(model.losses(batch)).backward()
        optimizer.step()
    return model.eval()


# --- eqs. 2 and 3


def test_plain_entropy_by_hand():
    p = torch.tensor([0.95, 0.6, 0.4, 0.05])
    assert binary_entropy(p).tolist() == pytest.approx([0.198515, 0.673012, 0.673012, 0.198515], abs=1e-6)
    assert binary_entropy(p).mean().item() == pytest.approx(0.435763, abs=1e-6)


def test_weighted_entropy_by_hand():
    p = torch.tensor([[0.95, 0.6], [0.4, 0.05]])
    # .25*.05^2*.198515, .25*.4^2*.673012, neglected, .75*.05^2*.198515; a mean over all four
    by_hand = (0.000124072 + 0.026920465 + 0.0 + 0.000372216) / 4
    assert weighted_entropy(p, 0.25, 2, 0.5, 0.3).item() == pytest.approx(by_hand, abs=1e-8)
    assert weighted_entropy(p, 0.25, 2, 0.5, 0.4).item() == pytest.approx(
        by_hand + 0.75 * 0.16 * 0.673012 / 4, abs=1e-7
    )


def slow_weighted_entropy(p, alpha, gamma, tau1, tau2):
    terms = []
    for x in p:
        entropy = -sum(y * math.log(y) for y in (x, 1 - x) if y > 0)
        if x >= tau1:
            terms.append(alpha * (1 - x) ** gamma * entropy)
        elif x <= tau2:
            terms.append((1 - alpha) * x**gamma * entropy)
    return sum(terms) / len(p)


unit = st.floats(0, 1)


@given(st.lists(unit, min_size=1, max_size=12), unit, st.sampled_from([0, 0.5, 1, 2, 6]), unit, unit, st.booleans())
def test_weighted_entropy_against_a_loop(p, alpha, gamma, tau1, tau2, detach):
    found = weighted_entropy(torch.tensor(p, dtype=torch.float64), alpha, gamma, tau1, tau2, detach).item()
    assert found == pytest.approx(slow_weighted_entropy(p, alpha, gamma, tau1, tau2), abs=1e-12)


def test_a_probability_at_a_threshold_is_inside():
    at = torch.tensor([0.5], dtype=torch.float64)
    assert weighted_entropy(at, 0.25, 0, 0.5, 0.5).item() == pytest.approx(0.25 * math.log(2))  # foreground first
    assert weighted_entropy(at, 0.25, 0, 0.6, 0.5).item() == pytest.approx(0.75 * math.log(2))
    assert weighted_entropy(at, 0.25, 0, 0.6, 0.4).item() == 0


def test_half_of_the_plain_entropy_is_a_special_case():
    p = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weighted_entropy(p, 0.5, 0, 0.4, 0.4), binary_entropy(p).mean() / 2)


def slope(p, *setting, **options):
    p = torch.tensor([p], dtype=torch.float64, requires_grad=True)
    weighted_entropy(p, *setting, **options).backward()
    return p.grad.item()


@pytest.mark.parametrize(
    ("p", "tau", "attached", "detached"),
    [(0.35, 0.3, -0.1450, 0.0654), (0.5, 0.3, -0.1733, 0), (0.29, 0.3, 0.318, 0.0565)],
)
def test_detaching_the_weight_turns_the_sign(p, tau, attached, detached):
    assert slope(p, 0.25, 2, tau, tau) == pytest.approx(attached, abs=5e-4)
    assert slope(p, 0.25, 2, tau, tau, detach=True) == pytest.approx(detached, abs=5e-4)


@pytest.mark.parametrize(("gamma", "border"), [(1, 0.297), (2, 0.212), (4, 0.136), (6, 0.101)])
def test_far_below_the_middle_even_foreground_is_pushed_down(gamma, border):
    assert slope(border - 0.001, 0.25, gamma, 0.01, 0.01) > 0 > slope(border + 0.001, 0.25, gamma, 0.01, 0.01)
    assert slope(1 - border + 0.001, 0.25, gamma, 1, 0.99) < 0 < slope(1 - border - 0.001, 0.25, gamma, 1, 0.99)


@pytest.mark.parametrize("gamma", [0, 0.5, 2, 6])
@pytest.mark.parametrize("detach", [False, True])
def test_certainty_has_no_entropy_and_a_finite_slope(gamma, detach):
    p = torch.tensor([0.0, 1.0], requires_grad=True)
    for loss in (weighted_entropy(p, 0.25, gamma, 0.5, 0.5, detach), binary_entropy(p).mean()):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, p)[0].isfinite().all()


def test_no_samples_no_entropy():
    p = torch.zeros(0, requires_grad=True)
    assert weighted_entropy(p, 0.25, 2, 0.5, 0.5).item() == 0


@pytest.mark.parametrize(("detach", "rises"), [(False, True), (True, False)])
def test_descent_makes_tau_the_border_unless_detached(detach, rises):
    logits = torch.tensor([0.35, 0.25]).logit().requires_grad_()
    optimizer = torch.optim.SGD([logits], 1.0)
    for _ in range(20):
        optimizer.zero_grad()
        weighted_entropy(logits.sigmoid(), 0.25, 2, 0.3, 0.3, detach).backward()
        optimizer.step()
    above, below = logits.sigmoid().tolist()
    assert (above > 0.35) == rises
    assert below < 0.25


# --- the detectors' pieces


def test_solid_boxes():
    empty = [[3, 3, 3, 9], [3, 3, 9, 3], [9, 9, 3, 3], [0, 0, 0.5, 9], [0, math.nan, 5, 5], [0, 0, math.inf, 5]]
    assert solid(torch.tensor([*empty, [1, 1, 2, 5]])).tolist() == [[1, 1, 2, 5]]
    assert solid(torch.zeros(0, 4)).shape == (0, 4)


def test_anchors_lie_on_the_centres_of_cells():
    anchors = CentredAnchors(((8,),), ((1.0,),))
    found = anchors(
        SimpleNamespace(tensors=torch.zeros(1, 3, 16, 24), image_sizes=[(16, 24)]), [torch.zeros(1, 4, 2, 3)]
    )
    centres = (found[0][:, :2] + found[0][:, 2:]) / 2
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_fcos_classifies_by_cross_entropy(batch):
    """Eq. 1: a mean over all places; positive are those inside a box and within 1.5 strides of its centre."""
    model = wend(entropy=None)
    nn.init.normal_(model.detector.parts.head.classification_head.cls_logits.weight, std=0.1)
    losses, p = model.detector.losses(model.maps(batch["image"]), batch["image"], batch["pseudo_boxes"])
    terms = []
    for picture, boxes in enumerate(batch["pseudo_boxes"]):
        x0, y0, x1, y1 = boxes[0].tolist()
        for place, q in enumerate(p[picture].tolist()):
            x, y = 8 * (place % 8) + 4, 8 * (place // 8) + 4
            near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 12
            terms.append(-math.log(q if near and x0 < x < x1 and y0 < y < y1 else 1 - q))
    assert losses["classification"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize(("fraction", "positives"), [(0.5, 32), (0.2, 12)])
def test_share_of_positive_regions(fraction, positives):
    second = FasterRCNN([32], [8], width=16, positive_fraction=fraction).second
    box = torch.tensor([[8.0, 8, 40, 40]])
    proposals = torch.cat([box.repeat(99, 1), torch.tensor([[50.0, 50, 60, 60]]).repeat(100, 1)])
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64)}
    labels = second.select_training_samples([proposals], [target])[2][0]
    assert len(labels) == 64 and labels.sum().item() == positives


def test_entropy_is_that_of_the_second_stage(batch):
    model = wend("faster-rcnn", entropy="plain", eta=0.0)
    model.losses(batch)["entropy"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.detector.first.parameters())
    assert model.detector.second.box_predictor.cls_score.weight.grad.abs().sum() > 0
    assert not model.detector.second.box_predictor.bbox_pred.weight.grad


def test_regions_on_a_pseudo_box_are_objects(batch):
    model = wend("faster-rcnn", entropy=None)
    score = model.detector.second.box_predictor.cls_score
    nn.init.zeros_(score.weight)
    with torch.no_grad():
        score.bias.copy_(torch.tensor([0.0, 10.0]))  # all are objects, for sure
    losses, p = model.detector.losses(model.maps(batch["image"]), batch["image"], batch["pseudo_boxes"])
    torch.testing.assert_close(p, torch.full_like(p, 0.9999546))
    assert losses["classification"].item() < 9.7  # 10 if every region were background; the box itself is none


def test_entropy_is_that_of_every_decoder_layer(batch):
    model = wend("deformable-detr").eval()
    maps = model.maps(batch["image"])
    supervised, p = model.detector.losses(maps, batch["image"], batch["pseudo_boxes"])
    said = model.detector._run(maps, batch["image"])
    assert p.shape == (2, 8, 12)
    torch.testing.assert_close(p[-1], said.logits[..., 0].sigmoid())
    assert not torch.allclose(p[0], p[1])
    labels = [{"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": b} for b in relative(batch)]
    whole = model.detector._run(maps, batch["image"], labels=labels).loss
    torch.testing.assert_close(total(supervised), whole)  # every term of the package's own loss, at its own price


def relative(batch):
    corners = [b / 64 for b in batch["pseudo_boxes"]]
    return [torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1) for b in corners]


def test_eta_prices_the_supervised_losses_alone(batch):
    whole, eighth = (wend(eta=eta).eval().losses(batch) for eta in (1.0, 0.125))
    assert whole.pop("entropy").item() == eighth.pop("entropy").item() > 0
    assert set(whole) == {"classification", "regression", "centerness"}
    for name in whole:
        assert eighth[name].item() == pytest.approx(whole[name].item() / 8)


@pytest.mark.parametrize(("entropy", "price"), [("plain", 1.0), ("weighted", 0.5)])
def test_which_entropy(batch, entropy, price):
    model = wend(entropy=entropy, alpha=0.5, gamma=0.0).eval()
    p = model.detector.losses(model.maps(batch["image"]), batch["image"], batch["pseudo_boxes"])[1]
    assert model.losses(batch)["entropy"].item() == pytest.approx(price * binary_entropy(p).mean().item())
    assert "entropy" not in wend(entropy=None).losses(batch)


def test_numbers_of_parameters():
    """Table 1 of the paper, in millions and cut off: SCR 24.55, BCD 99.12, 3.67 more for 200 classes."""
    backbone = create("resnet50")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(SCR(backbone, 200)) == 24_559_172
    one = WEND(backbone, 200)
    assert count(one) == 99_128_390
    one.detector.parts.head.classification_head.cls_logits = nn.Conv2d(2048, 200, 3)
    assert count(one) - 99_128_390 == 3_668_167
    assert count(DeformableDETR([512, 1024, 2048], [8, 16, 32])) == 16_591_623


# --- learning and finding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "steps", "rate"),
    [
        (scr, 60, 2e-3),
        (wend, 50, 2e-3),
        (lambda: wend(neck="fpn", backbone=trunk(("stage2", "last")), width=64), 40, 2e-3),
        (lambda: wend("faster-rcnn"), 40, 2e-3),
        (lambda: wend("deformable-detr", options={"width": 64, "layers": 2, "queries": 6, "levels": 1}), 140, 2e-3),
    ],
    ids=["scr", "fcos", "fcos-fpn", "faster-rcnn", "deformable-detr"],
)
def test_eight_pictures_are_learned_by_heart(batch, make, steps, rate):
    found = train(make(), batch, steps, rate).localize(batch["image"])
    best = [iou(b[:1], truth).max().item() for b, truth in zip(found.boxes, batch["pseudo_boxes"], strict=True)]
    assert min(best) > 0.6


@pytest.mark.slow
def test_two_objects_are_two_boxes_for_a_detector_and_one_between_for_scr():
    pictures = load("scenes", "test", size=64, n=8, seed=5, instances=2)
    batch = {
        "image": torch.stack([pictures[i]["image"] for i in range(8)]),
        "pseudo_boxes": [pictures.boxes(i).float() for i in range(8)],
    }

    def recall(method):
        boxes = train(method, batch, 80, 2e-3).localize(batch["image"]).boxes
        hits = [
            (iou(truth, b[:5]).amax(1) > 0.5).float() for b, truth in zip(boxes, batch["pseudo_boxes"], strict=True)
        ]
        return torch.cat(hits).mean().item()

    assert recall(wend()) > 0.9


@pytest.mark.slow
def test_a_regressor_that_is_told_now_one_and_now_the_other_box_answers_with_their_mean(batch):
    boxes = torch.tensor([[4.0, 20, 24, 44], [36.0, 20, 56, 44]])
    told = [{**batch, "pseudo_boxes": [one[None]] * 8} for one in boxes]
    model = scr()
    optimizer = torch.optim.AdamW(model.train().parameters(), 2e-3)
    for step in range(80):
        optimizer.zero_grad()
        total(model.losses(told[step % 2])).backward()
        optimizer.step()
    found = torch.cat(model.localize(batch["image"]).boxes)
    assert (iou(found, boxes.mean(0, keepdim=True)) > 0.6).all()
    assert (iou(found, boxes) < 0.5).all()


def test_of_two_boxes_on_one_object_the_less_sure_is_dropped():
    for name, most in {"fcos": 0.6, "faster-rcnn": 0.5}.items():
        for boxes in wend(name).localize(torch.rand(2, 3, 64, 64)).boxes:
            assert len(boxes) > 1 and iou(boxes, boxes).fill_diagonal_(0).max() <= most + 1e-6


def test_anchors_are_measured_in_strides():
    model = wend("faster-rcnn", options={"width": 64, "sizes": (2, 6), "ratios": (1.0,)})
    anchors = model.detector.first.anchor_generator
    assert torch.cat(anchors.cell_anchors).tolist() == [[-8, -8, 8, 8], [-24, -24, 24, 24]]  # 2 and 6 strides of 8


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "boxes",
    [
        [[], [[3.0, 3, 3, 40]], [[0.0, 0, 64, 64]], [[5.0, 6, 30, 40], [9.0, 9, 9, 9], [30.0, 8, 60, 50]]],
        [[], [], [], []],
        [[[3.0, 3, 3, 40]], [[0.0, 0, 0, 0]], [[64.0, 5, 64, 9]], []],
    ],
    ids=["some", "none", "all of zero area"],
)
def test_pictures_without_a_box_and_full_ones(batch, name, boxes):
    model = METHODS[name]().train()
    batch = {
        "image": batch["image"][:4],
        "pseudo_boxes": [torch.tensor(picture, dtype=torch.float32).reshape(-1, 4) for picture in boxes],
    }
    losses = model.losses(batch)
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_boxes_of_zero_area_change_nothing(batch, name):
    model = METHODS[name]().eval()
    if name == "faster-rcnn":  # its first stage gives losses in training only
        model.train()
    known = {**batch, "pseudo_boxes": [b[:1] for b in batch["pseudo_boxes"]]}
    with_empty = {
        **batch,
        "pseudo_boxes": [torch.cat([b[:1].new_tensor([[7, 7, 7, 9]]), b[:1]]) for b in batch["pseudo_boxes"]],
    }
    values = []
    for given_batch in (known, with_empty):
        torch.manual_seed(3)
        values.append(copy.deepcopy(model).losses(given_batch))
    for key in values[0]:
        torch.testing.assert_close(values[0][key], values[1][key])


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_lie_inside_the_picture_best_first(batch, name):
    model = wend(name).train()
    found = model.localize(batch["image"])
    assert model.training and model.detector.training
    for boxes, scores in zip(found.boxes, found.scores, strict=True):
        assert 1 <= len(boxes) == len(scores)
        assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert found.logits is None


def test_one_box_is_given_even_by_a_detector_that_sees_nothing(batch):
    model = wend().eval()
    nn.init.constant_(model.detector.parts.head.classification_head.cls_logits.bias, -1e4)
    assert all(len(boxes) >= 1 for boxes in model.localize(batch["image"]).boxes)


def test_regressed_box_by_hand(batch):
    model = scr().eval()
    nn.init.zeros_(model.head[2].weight)
    with torch.no_grad():
        model.head[2].bias.copy_(torch.tensor([0.25, 0.5, 0.5, 0.25]).logit())
    images = F.interpolate(batch["image"][:2], (64, 128))
    for box in model.localize(images).boxes:
        torch.testing.assert_close(box, torch.tensor([[32.0, 32, 96, 48]]))  # x, y, w, h in parts of 128 and 64
    exact, off = torch.tensor([[32.0, 32, 96, 48]]), torch.tensor([[0.0, 32, 64, 48]])
    assert model.losses({"image": images, "pseudo_boxes": [exact, exact]})["regression"].item() == pytest.approx(
        0, abs=1e-9
    )
    # one of four numbers is .25 off in one of two pictures
    loss = model.losses({"image": images, "pseudo_boxes": [exact, off]})["regression"].item()
    assert loss == pytest.approx(50 * 0.25**2 / 8, rel=1e-4)
    alone = model.losses({"image": images, "pseudo_boxes": [off, torch.zeros(0, 4)]})["regression"].item()
    assert alone == pytest.approx(50 * 0.25**2 / 4, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_round_trip_through_a_checkpoint(batch, name, tmp_path):
    model = METHODS[name]()
    train(model, batch, 1, 1e-2)
    engine.save(tmp_path / "kept.safetensors", model)
    other = METHODS[name]().eval()
    engine.restore(tmp_path / "kept.safetensors", other)
    before, after = model.localize(batch["image"]), other.localize(batch["image"])
    for one, two in zip(before.boxes, after.boxes, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("make", [scr, wend])
def test_the_class_comes_from_the_classifier(batch, make):
    torch.manual_seed(4)
    classifier = CAM(create("test_resnet"), CLASSES)
    nn.init.normal_(classifier.head.weight)
    model = make(classifier=classifier)
    logits = model.train().localize(batch["image"]).logits
    torch.testing.assert_close(logits, classifier.eval().localize(batch["image"]).logits)
    assert not any("classifier" in name for name in model.state_dict())


@pytest.mark.parametrize("make", [scr, wend])
def test_frozen_trunk(batch, make):
    model = make(freeze_backbone=True)
    kept = copy.deepcopy(model.backbone.module.state_dict())
    train(model, batch, 2, 1e-2)
    assert all(torch.equal(value, kept[name]) for name, value in model.backbone.module.state_dict().items())
    assert not any("backbone" in name for name in model.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_rates(name):
    model = METHODS[name]()
    slow, quick = model.param_groups(RECIPE)
    assert (slow["lr_scale"], quick["lr_scale"]) == (1.0, 10.0)
    names = {p: n for n, p in model.named_parameters()}
    slow_names = {names[p] for p in slow["params"]}
    expected = {n for n in names.values() if n.startswith("backbone")}
    expected |= {n for n in names.values() if "sampling_offsets" in n or "reference_points" in n}
    assert slow_names == expected
    assert len(slow["params"]) + len(quick["params"]) == len(names)


def test_pyramid_learns_as_a_new_part():
    model = wend(neck="fpn", backbone=trunk(("stage2", "last")), width=32)
    _, quick = model.param_groups(RECIPE)
    assert {id(p) for p in model.pyramid.parameters()} <= {id(p) for p in quick["params"]}
    assert [tuple(m.shape[1:]) for m in model.maps(torch.rand(1, 3, 64, 64))] == [(32, 16, 16), (32, 8, 8)]


def test_fit_through_the_view(scenes):
    data = load("scenes", "train", size=64, n=8)
    boxes = [torch.tensor([[10.0, 10, 50, 50]])] * 7 + [torch.zeros(0, 4)]
    viewed = Augmented(PseudoSupervision(data, boxes=boxes), resize=72, crop=64)
    history = engine.fit(wend(), viewed, Training(epochs=1, batch_size=4), progress=False)
    assert all(math.isfinite(loss) for loss in history.losses())
    with pytest.raises(RecipeError, match="pseudo_boxes"):
        engine.fit(wend(), data, Training(epochs=1, batch_size=4), progress=False)


# --- what a recipe can get wrong


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"detector": "yolo"}, "fcos, faster-rcnn, deformable-detr"),
        ({"neck": "pan"}, "single, fpn"),
        ({"entropy": "none"}, "weighted, plain, None"),
        ({"tau1": 0.3, "tau2": 0.4}, "tau2"),
        ({"options": {"tower": 2}}, "tower"),
        ({"neck": "fpn", "detector": "deformable-detr"}, "leave out neck"),
    ],
)
def test_refused(options, text):
    with pytest.raises(RecipeError, match=text):
        WEND(trunk(), CLASSES, **options)


def test_refused_maps():
    with pytest.raises(RecipeError, match=r"\[8, 8\]"):
        WEND(trunk(("stage3", "last")), CLASSES, neck="fpn")
    with pytest.raises(RecipeError, match="multiple of 32"):
        FCOS([40], [8])


def test_transformers_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RecipeError, match=r"wsol-lib\[detr\]"):
        DeformableDETR([64], [8])
