"""The weight map: its equations by hand, its score against OpenCV, its networks in and out of training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from wsol_lib import engine
from wsol_lib.backbones import create
from wsol_lib.data import load
from wsol_lib.methods.cam import CAM
from wsol_lib.methods.weight_map import (
    MaskNetwork,
    SiameseWeightMap,
    TripletEmbedding,
    WeightMap,
    completeness,
    distance,
    inner_triplet,
    invariance_loss,
    outer_triplet,
    triplet_loss,
)
from wsol_lib.types import RecipeError

STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")
CLASSES = 4
RECIPE = SimpleNamespace(head_rate=10.0)


def encoder(stages=STAGES):
    return create("test_efficientnet", stages=stages)


def classifier():
    torch.manual_seed(0)
    model = CAM(create("test_resnet"), CLASSES)
    nn.init.normal_(model.head.weight, std=3)  # answers that differ from picture to picture
    return model


def embedding(**options):
    torch.manual_seed(1)
    return TripletEmbedding(create("test_resnet"), CLASSES, dimensions=6, **options)


@torch.no_grad()
def warmed(localizer):
    """With the running statistics of one batch in g: masks that differ from pixel to pixel in eval mode too."""
    norms = [part for part in localizer.mask.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    localizer.train().mask(torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    for norm in norms:
        norm.momentum = 0.1
    return localizer


def method_one(**options):
    f = classifier()
    torch.manual_seed(2)
    return warmed(WeightMap(encoder(), f, CLASSES, **options))


def method_two(**options):
    f, named = embedding(), classifier()
    torch.manual_seed(2)
    return warmed(SiameseWeightMap(encoder(), f, named, CLASSES, **options))


@pytest.fixture(scope="module")
def batch():
    pictures = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(3)
    labels = torch.tensor([2, 0, 3])
    return {"image": pictures[0], "positive": pictures[1], "negative": pictures[2], "label": labels}


class Drawn(nn.Module):
    """In the place of g: the same mask for every picture, whatever the picture."""

    def __init__(self, mask):
        super().__init__()
        self.mask = nn.Parameter(torch.as_tensor(mask))

    def forward(self, images):
        return self.mask.expand(len(images), *images.shape[-2:])


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- D of eq. 1


def test_cross_entropy_by_hand():
    whole, masked = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert invariance_loss(whole, masked).item() == pytest.approx(0.886941, abs=1e-6)
    assert invariance_loss(whole, masked, "hard").item() == pytest.approx(math.log(2), abs=1e-6)
    assert invariance_loss(whole, whole).item() == pytest.approx(0.801819, abs=1e-6)  # the entropy, not 0


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_cross_entropy_is_a_mean_over_the_batch(target):
    whole, masked = torch.randn(5, 3), torch.randn(5, 3)
    each = [invariance_loss(whole[i : i + 1], masked[i : i + 1], target) for i in range(5)]
    torch.testing.assert_close(invariance_loss(whole, masked, target), torch.stack(each).mean())


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_the_target_takes_no_gradient(target):
    whole, masked = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    invariance_loss(whole, masked, target).backward()
    assert whole.grad is None and masked.grad.abs().sum() > 0


# --- triplets, eqs. 2 to 4

ORIGIN, FIVE, TWO, THIRTEEN = (torch.tensor([p]) for p in ([0.0, 0.0], [3.0, 4.0], [0.0, 2.0], [5.0, 12.0]))


@pytest.mark.parametrize("loss", [triplet_loss, inner_triplet, outer_triplet])
def test_triplets_by_hand(loss):
    assert loss(ORIGIN, FIVE, TWO).item() == pytest.approx(4)  # 5 - 2 + 1; squared it were 22
    assert loss(ORIGIN, FIVE, TWO, margin=0.5).item() == pytest.approx(3.5)
    assert loss(ORIGIN, TWO, FIVE).item() == 0  # 2 - 5 + 1 < 0
    assert loss(ORIGIN, TWO, FIVE, margin=4).item() == pytest.approx(1)
    many = [torch.cat(points) for points in ((ORIGIN, ORIGIN), (FIVE, TWO), (TWO, THIRTEEN))]
    assert loss(*many).item() == pytest.approx(2)  # the mean of 4 and 0: the clamp comes before the mean


def test_distance_is_euclidean_and_has_a_gradient_at_zero():
    assert distance(ORIGIN, FIVE).item() == pytest.approx(5)
    assert distance(torch.cat([FIVE, ORIGIN]), torch.cat([THIRTEEN, TWO])).tolist() == pytest.approx([68**0.5, 2])
    points = torch.zeros(2, 2, requires_grad=True)
    triplet_loss(points, points.clone(), torch.zeros(2, 2)).backward()
    assert points.grad.isfinite().all()


def test_distance_has_a_gradient_at_zero_in_half_precision():
    points = torch.full((2, 2), 300.0, dtype=torch.float16, requires_grad=True)
    total = distance(points, points.detach()).sum() + distance(points, -points.detach()).sum()
    total.backward()
    assert total.item() == pytest.approx(2 * 600 * 2**0.5, rel=1e-3) and points.grad.isfinite().all()


def test_inner_is_least_where_the_foreground_is_the_picture():
    anchor = torch.randn(4, 6)
    far = anchor + 5
    assert inner_triplet(anchor, anchor, far).item() == 0
    assert inner_triplet(anchor, far, anchor).item() == pytest.approx(1 + 5 * 6**0.5, rel=1e-4)


# --- S, eqs. 5 and 6


def blobs(size, **places):
    """A mask with weights in windows: name=(rows, columns, weight)."""
    mask = torch.zeros(size, size)
    for rows, columns, weight in places.values():
        mask[slice(*rows), slice(*columns)] = weight
    return mask


def test_one_piece_is_complete_wherever_it_lies():
    for corner in (0, 3, 7):
        mask = blobs(10, piece=((corner, corner + 3), (2, 5), 0.7))
        assert completeness(mask).item() == pytest.approx(1)


def test_rounding_does_not_lift_the_score_above_one():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(10, 224, 224)
    masks[:, 30:180, 20:160] = 0.2 + 0.8 * torch.rand(10, 150, 140, generator=generator)
    assert completeness(masks).tolist() == pytest.approx([1] * 10) and completeness(masks).max() <= 1


def test_two_pieces_share_by_weight():
    mask = blobs(10, large=((0, 3), (0, 3), 0.5), small=((6, 8), (6, 8), 1.0))
    assert completeness(mask).item() == pytest.approx(4.5 / 8.5)  # the larger piece, though the smaller is brighter


def test_what_lies_in_the_box_counts_though_it_is_another_piece():
    corner = blobs(10, side=((0, 8), (0, 2), 1.0), foot=((6, 8), (0, 8), 1.0))  # an L of 28 pixels
    mask = corner + blobs(10, crumb=((1, 3), (5, 7), 1.0), outside=((9, 10), (9, 10), 1.0))
    assert completeness(mask).item() == pytest.approx(32 / 33)


def test_a_diagonal_touch_joins():
    mask = blobs(6, one=((0, 2), (0, 2), 1.0), two=((2, 4), (2, 4), 1.0))
    assert completeness(mask).item() == pytest.approx(1)
    apart = blobs(6, one=((0, 2), (0, 2), 1.0), two=((3, 5), (3, 5), 1.0))
    assert completeness(apart).item() == pytest.approx(0.5)


def test_the_largest_contour_is_not_the_piece_with_most_pixels():
    line = blobs(14, line=((0, 1), (0, 14), 1.0), block=((5, 8), (0, 3), 1.0))  # 14 pixels, area 0; 9 pixels, area 4
    assert completeness(line).item() == pytest.approx(9 / 23)
    ring = blobs(14, block=((8, 12), (0, 5), 1.0), ring=((0, 5), (0, 5), 1.0), hole=((1, 4), (1, 4), 0.0))
    assert completeness(ring).item() == pytest.approx(16 / 36)  # area 16 against 12, 16 pixels against 20


def test_a_tenth_of_the_largest_weight_is_shown_and_less_is_not():
    mask = blobs(10, piece=((2, 5), (2, 5), 1.0), crumb=((9, 10), (9, 10), 0.1))
    assert completeness(mask).item() == pytest.approx(9 / 9.1)
    mask[9, 9] = 0.0999  # now it weighs nothing, and not 0.0999
    assert completeness(mask).item() == 1
    assert completeness(mask / 2).item() == 1  # the threshold is relative


def test_there_is_no_min_max():
    mask = 0.5 + blobs(10, one=((0, 3), (0, 3), 0.5), two=((6, 8), (6, 8), 0.5))
    assert completeness(mask).item() == 1  # all of it is above a tenth; after min-max it were 9/13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_flat_and_broken_masks(dtype):
    assert completeness(torch.full((300, 300), 1.0, dtype=dtype)).item() == 1
    assert completeness(torch.full((5, 7), 1e-6, dtype=dtype)).item() == 1
    assert completeness(torch.zeros(5, 7, dtype=dtype)).item() == 0
    assert completeness(torch.full((5, 7), math.nan, dtype=dtype)).item() == 0
    broken = torch.ones(5, 7, dtype=dtype)
    broken[2, 3] = math.nan
    assert completeness(broken).item() == 0


def test_a_batch_is_its_masks():
    masks = torch.rand(6, 12, 9).pow(6)
    masks[2], masks[4, 0, 0] = 0, math.nan
    together = completeness(masks)
    assert together.shape == (6,) and completeness(masks[0]).shape == ()
    assert together.tolist() == [completeness(mask).item() for mask in masks]
    assert together[2] == together[4] == 0 < together[0] < 1


def slow_completeness(mask):
    """The paper's words with OpenCV, in float64."""
    kept = np.where(mask >= mask.max() / 10, mask, 0)
    if kept.sum() == 0:
        return 0.0
    contours, _ = cv2.findContours((kept > 0).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return kept[y : y + height, x : x + width].sum() / kept.sum()


@pytest.mark.parametrize("sharpness", [1, 3, 8])
def test_equal_to_opencv_on_smooth_random_masks(sharpness):
    rng = np.random.default_rng(sharpness)
    scores = []
    for _ in range(40):
        noise = cv2.resize(rng.random((7, 7)), (33, 29), interpolation=cv2.INTER_CUBIC).clip(0, 1) ** sharpness
        scores.append(slow_completeness(noise))
        assert completeness(torch.from_numpy(noise)).item() == pytest.approx(scores[-1], abs=1e-6)
    assert sharpness == 1 or min(scores) < 0.9


MASKS = arrays(np.float64, (8, 8), elements=st.sampled_from([0, 0, 0.05, 0.3, 1]))


@settings(max_examples=60, deadline=None)
@given(MASKS, st.floats(1e-3, 1e3))
def test_equal_to_opencv_on_crumbs_and_blind_to_scale(mask, factor):
    score = completeness(torch.from_numpy(mask)).item()
    assert score == pytest.approx(slow_completeness(mask), abs=1e-6) and 0 <= score <= 1
    assert completeness(torch.from_numpy(factor * mask)).item() == pytest.approx(score, abs=1e-6)


# --- g


def test_one_block_for_each_stage_and_skips_of_equal_size():
    torch.manual_seed(0)
    network = MaskNetwork(encoder())
    seen = []
    for block in network.decoder:
        block.register_forward_pre_hook(lambda _, given: seen.append([given[2], given[1]]))
        block.register_forward_hook(lambda _, __, out: seen[-1].append(out))
    mask = network(torch.rand(2, 3, 64, 96))
    assert len(network.decoder) == len(STAGES) and len(seen) == len(STAGES)
    skips, sizes, outs = zip(*seen, strict=True)
    shapes = [tuple(out.shape[-2:]) for out in outs]
    assert shapes == [(4, 6), (8, 12), (16, 24), (32, 48), (64, 96)] == [tuple(size) for size in sizes]
    assert [skip.shape[-2:] for skip in skips[:-1]] == shapes[:-1] and skips[-1] is None
    assert [skip.shape[1] for skip in skips[:-1]] == [network.encoder.channels[s] for s in reversed(STAGES[:-1])]
    assert all(out.min() == 0 for out in outs[:-1])  # ReLU
    assert mask.shape == (2, 64, 96) and 0 < mask.min() < mask.max() < 1
    assert mask.data_ptr() == outs[-1].data_ptr()


def test_a_block_is_two_convolutions_with_the_norm_before_the_activation():
    for block in MaskNetwork(encoder()).decoder:
        parts = [part for part in block.modules() if not isinstance(part, nn.Sequential)][1:]
        kinds = [type(part).__name__ for part in parts]
        last = "Sigmoid" if block.last[1].num_features == 1 else "ReLU"
        assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", last]
        assert {part.kernel_size for part in parts if isinstance(part, nn.Conv2d)} == {(3, 3)}


def test_the_last_block_stays_wide_until_its_last_convolution():
    """Through one channel, a ReLU would make all pixels above it equal."""
    torch.manual_seed(0)
    network = MaskNetwork(encoder())
    widths = [block.mix[0].out_channels for block in network.decoder]
    channels = list(network.encoder.channels.values())
    assert widths == [*reversed(channels[:-1]), channels[0]]
    mask = network.eval()(torch.rand(1, 3, 64, 64))
    assert len(mask.unique()) > 0.9 * mask.numel(), len(mask.unique()) / mask.numel()


@pytest.mark.parametrize("stage", STAGES)
def test_every_skip_is_used(stage, monkeypatch):
    network, pictures = method_one().mask.eval(), torch.rand(1, 3, 64, 64)
    encode, before = network.encoder.forward, network(pictures)
    monkeypatch.setattr(network.encoder, "forward", lambda x: {**encode(x), stage: torch.zeros_like(encode(x)[stage])})
    assert not torch.allclose(network(pictures), before, atol=1e-3)


@pytest.mark.parametrize("size", [(50, 70), (33, 65), (64, 64), (96, 40)])
def test_the_mask_has_the_size_of_the_picture(size):
    assert MaskNetwork(encoder()).eval()(torch.rand(1, 3, *size)).shape == (1, *size)


def test_fewer_stages_give_fewer_blocks():
    network = MaskNetwork(encoder(STAGES[:3]))
    assert len(network.decoder) == 3 and network(torch.rand(2, 3, 32, 32)).shape == (2, 32, 32)


@pytest.mark.parametrize(
    "stages", [("last",), ("stage1",), ("stage2", "stage3"), ("stage1", "stage3"), (*STAGES, "last")]
)
def test_other_encoders_are_refused(stages):
    with pytest.raises(RecipeError, match=r"strides 2, 4, 8, .*test_efficientnet gives \[.*ask its backbone for all"):
        MaskNetwork(encoder(stages))


# --- method I


def test_losses_are_equation_one(batch):
    localizer = method_one(area=0.25).eval()
    f, images = localizer.classifier.module, batch["image"]
    inputs, mask = f.network.normalize(images), localizer.mask(images)
    expected = []
    for i in range(3):
        whole = f.head(f.network.features(inputs[i : i + 1])).softmax(1)
        masked = f.head(f.network.features(inputs[i : i + 1] * mask[i])).log_softmax(1)
        expected.append(-(whole * masked).sum())
    losses = localizer(batch)
    assert list(losses) == ["invariance", "area"]
    assert losses["invariance"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert losses["area"].item() == pytest.approx(0.25 * mask.mean().item(), rel=1e-6)


def test_the_target_may_be_the_predicted_class(batch):
    localizer = method_one(target="hard").eval()
    f = localizer.classifier.module
    inputs, mask = f.network.normalize(batch["image"]), localizer.mask(batch["image"])
    masked = f.classify(inputs * mask[:, None]).log_softmax(1)
    expected = -masked[torch.arange(3), f.classify(inputs).argmax(1)].mean()
    torch.testing.assert_close(localizer(batch)["invariance"], expected)
    assert not torch.allclose(expected, method_one().eval()(batch)["invariance"])


def test_what_the_mask_hides_becomes_the_mean_colour(batch):
    localizer = method_one()
    localizer.mask = Drawn(0.0)
    f = localizer.classifier.module
    grey = f.network.mean.expand_as(batch["image"])
    answers = [f.localize(images).logits for images in (batch["image"], grey, torch.zeros_like(grey))]
    assert localizer(batch)["invariance"].item() == pytest.approx(invariance_loss(*answers[:2]).item(), rel=1e-4)
    assert not torch.allclose(answers[1], answers[2], rtol=1e-2)  # the mean colour is not black


def test_labels_are_not_looked_at(batch):
    localizer = method_one().eval()
    unlabelled = {"image": batch["image"]}
    assert values(localizer(batch)) == values(localizer(unlabelled)) and not localizer.uses_labels
    found = [localizer.localize(batch["image"], labels).maps for labels in (None, batch["label"])]
    assert torch.equal(*found)


@pytest.mark.parametrize("size", [64, 96])
def test_area_is_the_mean_and_lambda_its_price(size):
    for price in (0.0, 1.0, 2.5):
        localizer = method_one(area=price)
        localizer.mask = Drawn(0.3)
        area = localizer({"image": torch.rand(2, 3, size, size)})["area"].item()
        assert area == pytest.approx(0.3 * price)


def test_without_the_area_the_mask_of_ones_is_best(batch):
    localizer = method_one(area=0.0)
    answers = localizer.classifier.module.localize(batch["image"]).logits.softmax(1)
    entropy = -(answers * answers.log()).sum(1).mean().item()
    localizer.mask = Drawn(1.0)
    losses = localizer(batch)
    sum(losses.values()).backward()
    assert sum(values(losses).values()) == pytest.approx(entropy, rel=1e-4) and entropy > 0.1
    assert localizer.mask.mask.grad.abs() < 1e-4
    for mask in (0.0, 0.5, 0.9, torch.rand(64, 64), torch.rand(64, 64).round()):
        localizer.mask = Drawn(mask)
        assert localizer(batch)["invariance"].item() > entropy + 1e-4


def fitted(localizer, batch, steps=8):
    optimizer = torch.optim.AdamW(localizer.param_groups(RECIPE), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(localizer(batch).values()).backward()
        optimizer.step()
    return localizer


def test_a_dear_area_shrinks_the_mask(batch):
    start = method_one().train().mask(batch["image"]).mean().item()
    dear, free = (fitted(method_one(area=price).train(), batch).mask(batch["image"]).mean().item() for price in (20, 0))
    assert dear < 0.7 * start and dear < 0.7 * free


@pytest.mark.parametrize("make", [method_one, method_two])
def test_a_training_step_moves_g_and_leaves_f_alone(make, batch):
    localizer = make(area=0.0).train()
    frozen = [part.module for part in (localizer.classifier, getattr(localizer, "embedding", None)) if part is not None]
    before = [state(f) for f in frozen]
    learner = state(localizer)
    sum(localizer(batch).values()).backward()
    gradients = {name: p.grad for name, p in localizer.named_parameters() if p.requires_grad}
    dead = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert not dead and sum(gradient.abs().sum() > 0 for gradient in gradients.values()) > 0.9 * len(gradients)
    assert all(p.grad is None and not p.requires_grad for f in frozen for p in f.parameters())
    torch.optim.SGD([p for p in localizer.parameters() if p.requires_grad], lr=0.1).step()
    assert all(same(f, state) for f, state in zip(frozen, before, strict=True))  # running statistics too
    assert not any(part.training for f in frozen for part in f.modules())
    assert localizer.mask.training and not same(localizer, learner)
    assert all(name.startswith("mask.") for name in [*localizer.state_dict(), *gradients])


@pytest.mark.parametrize("make", [method_one, method_two])
def test_the_decoder_learns_at_the_rate_of_the_head(make):
    localizer = make()
    old, new = localizer.param_groups(RECIPE)
    assert (old.get("lr_scale", 1.0), new["lr_scale"]) == (1.0, 10.0)
    assert {id(p) for p in new["params"]} == {id(p) for p in localizer.mask.decoder.parameters()}
    learned = {id(p) for p in localizer.parameters() if p.requires_grad}
    assert {id(p) for p in [*old["params"], *new["params"]]} == learned


@pytest.mark.parametrize("make", [method_one, method_two])
def test_maps_are_masks_and_logits_the_classifiers(make, batch):
    localizer = make().eval()
    found = localizer.localize(batch["image"])
    torch.testing.assert_close(found.maps, localizer.mask(batch["image"]).detach())
    torch.testing.assert_close(found.logits, localizer.classifier.module.localize(batch["image"]).logits)
    assert found.maps.grad_fn is None and found.logits.grad_fn is None


@pytest.mark.parametrize("make", [method_one, method_two])
def test_saved_and_restored(make, batch, tmp_path):
    torch.manual_seed(7)
    kept = fitted(make().train(), batch, steps=1).eval()
    engine.save(tmp_path / "mask.safetensors", kept)
    fresh = make().eval()
    before = fresh.localize(batch["image"]).maps
    engine.restore(tmp_path / "mask.safetensors", fresh)
    after = fresh.localize(batch["image"])
    torch.testing.assert_close(after.maps, kept.localize(batch["image"]).maps)
    assert not torch.allclose(before, after.maps)


# --- method II


def test_losses_are_equations_three_and_four(batch):
    """Each picture alone, each equation in the paper's letters; g in eval mode, so that a batch is its pictures."""
    localizer = method_two(inner=0.5, outer=3.0, area=2.0, margin=0.7).eval()
    f, g = localizer.embedding.module, localizer.mask
    inner, outer, area = [], [], []
    for i in range(3):
        ia, ip, in_ = (batch[key][i : i + 1] for key in ("image", "positive", "negative"))
        ma, mp, mn = g(ia), g(ip), g(in_)
        ia, ip, in_ = (f.network.normalize(x) for x in (ia, ip, in_))
        whole, fa, ba = f.embed(ia), f.embed(ma * ia), f.embed((1 - ma) * ia)
        fp, fn = f.embed(mp * ip), f.embed(mn * in_)
        inner.append(max((whole - fa).norm() - (whole - ba).norm() + 0.7, torch.tensor(0.0)))
        outer.append(max((fa - fp).norm() - (fa - fn).norm() + 0.7, torch.tensor(0.0)))
        area.append(ma.mean())
    means = [torch.stack(terms).mean().item() for terms in (inner, outer, area)]
    assert min(means) > 0.01
    expected = {"inner": 0.5 * means[0], "outer": 3 * means[1], "area": 2 * means[2]}
    assert values(localizer(batch)) == pytest.approx(expected, rel=1e-3)


def test_five_passes_through_f_and_three_through_g(batch):
    localizer, passed = method_two(), {"f": 0, "g": 0}
    for name, part in {"f": localizer.embedding.module.project, "g": localizer.mask}.items():
        part.register_forward_hook(lambda _, given, __, name=name: passed.update({name: passed[name] + len(given[0])}))
    localizer(batch)
    assert passed == {"f": 5 * 3, "g": 3 * 3}


@pytest.mark.parametrize("term", ["inner", "outer", "area"])
def test_a_price_of_zero_leaves_a_term_out(term, batch):
    everything, without = method_two().eval()(batch), method_two(**{term: 0.0}).eval()(batch)
    assert values(without) == pytest.approx({**values(everything), term: 0.0})
    assert everything[term].item() > 0


def test_the_partners_masks_learn_from_the_outer_term_alone(batch):
    """Gradients of each term in the pictures that g sees: area and inner are of the anchor only."""
    localizer = method_two().eval()
    for term, partners in {"inner": False, "outer": True, "area": False}.items():
        pictures = {key: batch[key].clone() for key in ("image", "positive", "negative")}
        masks = []
        handle = localizer.mask.register_forward_hook(lambda _, __, out, masks=masks: masks.append(out) or out)
        loss = localizer(pictures)[term]
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, masks[0])  # [3B,H,W]: anchors, positives, negatives
        assert [part.abs().sum().item() > 0 for part in gradient.split(3)] == [True, partners, partners]


def test_an_embedding_is_a_point_without_a_norm(batch):
    f = embedding().eval()
    inputs = f.network.normalize(batch["image"])
    points = f.embed(inputs)
    assert points.shape == (3, 6)
    torch.testing.assert_close(points, f.project(f.network(batch["image"])["last"].mean((2, 3))))
    with torch.no_grad():
        f.project.weight.mul_(2), f.project.bias.mul_(2)
    torch.testing.assert_close(f.embed(inputs), 2 * points)
    assert TripletEmbedding(create("test_resnet"), CLASSES).project.out_features == 200


def test_an_embedding_starts_where_a_classifier_ended(batch):
    f = classifier().eval()
    started = embedding(start=f).eval()
    seen, found = (model.network(batch["image"])["last"] for model in (f, started))
    assert torch.equal(seen, found) and not torch.equal(embedding().eval().network(batch["image"])["last"], found)
    with torch.no_grad():
        next(started.network.parameters()).add_(1)
    assert torch.equal(f.network(batch["image"])["last"], seen)
    assert state(started).keys() == state(embedding()).keys()


def test_an_embedding_cannot_start_on_another_network():
    with pytest.raises(RecipeError, match="test_efficientnet cannot start from a classifier on test_resnet"):
        TripletEmbedding(create("test_efficientnet"), CLASSES, start=classifier())


def test_an_embedding_learns_triplets(batch):
    localizer = embedding(margin=0.8).eval()
    points = [localizer.embed(localizer.network.normalize(batch[k])) for k in ("image", "positive", "negative")]
    losses = localizer(batch)
    assert list(losses) == ["triplet"] and localizer.needs == ("positive", "negative")
    assert losses["triplet"].item() == pytest.approx(triplet_loss(*points, 0.8).item(), rel=1e-4)
    assert losses["triplet"].item() > 0.1
    optimizer = torch.optim.Adam(localizer.train().parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        loss = localizer(batch)["triplet"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * losses["triplet"].item()


def test_an_embedding_on_a_frozen_backbone(batch):
    localizer = embedding(freeze_backbone=True).train()
    before = state(localizer.network)
    localizer(batch)["triplet"].backward()
    assert same(localizer.network, before) and not localizer.network.training
    assert sorted(localizer.state_dict()) == ["project.bias", "project.weight"]
    found = localizer.localize(batch["image"])
    torch.testing.assert_close(found.maps, localizer.network(batch["image"])["last"].mean(1))
    assert found.logits is None


# --- through the engine


def recipe(*stages):
    shared = {"epochs": 1, "batch_size": 6, "optimizer": {"name": "adamw", "lr": 1e-3}}
    return engine.Recipe(
        name="tiny",
        data={"name": "scenes", "size": 32, "options": {"n": 12, "classes": CLASSES}},
        stages=[{**shared, **stage} for stage in stages],
        evaluate={"options": {"n": 6}, "args": {"resize": 32}},
    )


TRIPLETS = [{"name": "Augmented", "args": {"resize": 36, "crop": 32}}, {"name": "Triplets"}]
CLASSIFIER = {"name": "classifier", "method": "cam", "backbone": {"name": "test_resnet"}}
EMBEDDING = {
    "name": "embedding",
    "method": "triplet-embedding",
    "backbone": {"name": "test_resnet"},
    "args": {"dimensions": 5},
    "views": TRIPLETS,
}
MASK_BACKBONE = {"name": "test_efficientnet", "stages": list(STAGES)}
MASK = {"name": "mask", "method": "weight-map", "backbone": MASK_BACKBONE, "needs": {"classifier": "classifier"}}
SIAMESE = {
    "name": "mask",
    "method": "siamese-weight-map",
    "backbone": MASK_BACKBONE,
    "needs": {"classifier": "classifier", "embedding": "embedding"},
    "views": TRIPLETS,
}


@pytest.mark.parametrize(
    ("stages", "terms"),
    [((CLASSIFIER, MASK), {"invariance", "area"}), ((CLASSIFIER, EMBEDDING, SIAMESE), {"inner", "outer", "area"})],
    ids=["method I", "method II"],
)
def test_a_recipe_trains_the_stages_and_measures_the_mask(stages, terms, tmp_path):
    found = engine.run(recipe(*stages), tmp_path, device="cpu", progress=False)
    steps = found.histories["mask"].steps
    assert len(steps) == 2 and terms <= set(steps[0])
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert found.localizer.classifier.module is found.stages["classifier"]
    scores = found.evaluator.compute()
    assert scores.n == 6 and math.isfinite(scores.gt_known) and math.isfinite(scores.pxap)
    protocol = found.evaluator.protocol
    data = load("scenes", "test", size=32, n=6, classes=CLASSES, view=protocol)
    classifier_alone = engine.evaluate(found.stages["classifier"], data, protocol, progress=False)
    assert scores.top1_cls == classifier_alone.compute().top1_cls


def test_triplets_must_be_there():
    data = load("scenes", "train", size=32, n=12, classes=CLASSES)
    for localizer in (method_two(), embedding()):
        with pytest.raises(RecipeError, match="positive"):
            engine.fit(localizer, data, engine.Training(batch_size=6), progress=False)
