"""The causal context pool: weights by hand, the pool picture by picture, blocks on any network, the whole method."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distributed import together
from torch import nn
from toys import Squares

from wsol_lib import engine
from wsol_lib.backbones import create
from wsol_lib.data import load
from wsol_lib.methods.ci_cam import (
    CICAM,
    NLCCAM,
    CausalContextPool,
    NonLocal,
    NonLocalBackbone,
    combine,
    rank_weights,
    standardize,
)
from wsol_lib.metrics import PROTOCOLS
from wsol_lib.types import RecipeError

CLASSES, SIZE = 4, 32
PLACES = ("stage2", "stage3")
VGG_POOLS = ("features.9", "features.16", "features.23")
RULES = ("ci_quadratic", "nlccam_quadratic", "linear", "sum_1")
RECIPE = SimpleNamespace(head_rate=10.0)


def backbone(*stages):
    return create("test_resnet", stages=stages or ("stage3",))


def pictures(n):
    """Noise of random colours: Float[n,3,SIZE,SIZE], n at most 8."""
    generator = torch.Generator().manual_seed(0)
    tint = torch.rand(8, 3, 1, 1, generator=generator).square()
    return (tint * torch.rand(8, 3, SIZE, SIZE, generator=generator))[:n]


@torch.no_grad()
def opened(localizer):
    """With blocks that do something, logits that differ from picture to picture, and a pool that is not empty."""
    generator = torch.Generator().manual_seed(1)
    for block in localizer.network.blocks:
        block.norm.weight.normal_(generator=generator)
    localizer.head.weight.normal_(std=5, generator=generator)
    pooled = localizer.eval().network(localizer.network.normalize(pictures(8))).mean((0, 2, 3))  # [C]
    localizer.train().head.bias.copy_(-localizer.head.weight @ pooled)
    if hasattr(localizer, "pool"):
        localizer.pool.pool.copy_(standardize(torch.randn(localizer.pool.pool.shape, generator=generator)))
        localizer.pool.project.weight.normal_(generator=generator)
    return localizer


def ci_cam(kind=CICAM, **options):
    torch.manual_seed(0)
    return opened(kind(backbone(), CLASSES, size=SIZE, non_local=PLACES, **options))


def nl_ccam(**options):
    torch.manual_seed(0)
    return opened(NLCCAM(backbone(), CLASSES, non_local=PLACES, **options))


@pytest.fixture
def batch():
    return {"image": pictures(6), "label": torch.tensor([2, 0, 3, 2, 1, 0])}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- gamma, eq. 3


@pytest.mark.parametrize(
    ("n", "rule", "expected"),
    [
        (5, "ci_quadratic", [0, -0.0625, -0.25, -0.5625, -1]),
        (6, "nlccam_quadratic", [1, 0.25, 0, 0, -0.25, -1]),
        (5, "nlccam_quadratic", [1, 0.25, 0, 0, -1]),
        (5, "linear", [1, 0.5, 0, -0.5, -1]),
        (2, "ci_quadratic", [0, -1]),
        (1, "ci_quadratic", [0]),
        (1, "nlccam_quadratic", [1]),
        (1, "linear", [1]),
        (1, "sum_1", [1]),
    ],
)
def test_rank_weights_by_hand(n, rule, expected):
    assert rank_weights(n, rule).tolist() == pytest.approx(expected, abs=1e-7)


def test_sum_1_takes_away_the_last_ranks():
    assert rank_weights(4, "sum_1", last=2).tolist() == [1, 0, 0, -1]
    weights = rank_weights(1000, "sum_1")
    assert weights[0] == 1 and not weights[1:981].any()
    assert weights[980:].tolist() == pytest.approx([-(2 * j / 19) / 20 for j in range(20)])
    assert weights[1:].sum().item() == pytest.approx(-1)
    assert rank_weights(21, "sum_1")[2] < 0 and rank_weights(21, "sum_1")[0] == 1
    assert rank_weights(12, "sum_1").tolist() == pytest.approx([1] + [0] * 6 + [-2 * j / 5 / 6 for j in range(1, 6)])


@pytest.mark.parametrize("rule", RULES)
def test_weights_never_rise_and_there_is_one_a_class(rule):
    for n in (1, 2, 3, 7, 20, 21, 50, 200):
        weights = rank_weights(n, rule)
        assert weights.shape == (n,) and (weights.diff() <= 1e-7).all() and weights.abs().max() <= 1


def test_an_unknown_rule_is_refused_before_the_training():
    with pytest.raises(RecipeError, match=r"no rule 'ci_quadratc' .*did you mean 'ci_quadratic'"):
        nl_ccam(rule="ci_quadratc")


# --- H


def test_combine_by_hand():
    cams = torch.tensor([[[1.0, 2.0]], [[10.0, 0.0]], [[5.0, 5.0]]])[None]  # [1,3,1,2]
    logits = torch.tensor([[0.0, 2.0, 1.0]])  # ranks: class 1, class 2, class 0
    # linear, weights 1, 0, -1: (10, 0) - (1, 2) = (9, -2); then minus the minimum
    assert combine(cams, logits, "linear").tolist() == [[[11, 0]]]
    # weights 0, -1/4, -1: -(5, 5)/4 - (1, 2)
    assert combine(cams, logits, "ci_quadratic").tolist() == [[[1, 0]]]


def slow_combine(cams, logits, rule):
    weights = rank_weights(logits.shape[1], rule)
    out = []
    for maps, answer in zip(cams, logits, strict=True):
        order = sorted(range(len(answer)), key=lambda k: -answer[k].item())
        total = sum(weights[rank] * maps[k] for rank, k in enumerate(order))
        out.append(total - total.min())
    return torch.stack(out)


@pytest.mark.parametrize("rule", RULES)
def test_combine_picture_by_picture(rule):
    cams, logits = torch.randn(5, 7, 3, 4), torch.randn(5, 7)
    logits[0, 3] = logits[0, 5]  # of equal logits the first class leads
    found = combine(cams, logits, rule)
    torch.testing.assert_close(found, slow_combine(cams, logits, rule))
    assert found.shape == (5, 3, 4) and (found.amin((1, 2)) == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.sampled_from(RULES), st.integers(0, 10))
def test_combine_does_not_mind_the_order_of_classes(order, rule, seed):
    generator = torch.Generator().manual_seed(seed)
    cams, logits = torch.randn(2, 6, 3, 3, generator=generator), torch.randn(2, 6, generator=generator)
    other = combine(cams[:, order], logits[:, order], rule)
    torch.testing.assert_close(other, combine(cams, logits, rule))


def test_the_predicted_class_is_not_drawn_by_ci_quadratic():
    cams, logits = torch.randn(1, 4, 3, 3, requires_grad=True), torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    combine(cams, logits, "ci_quadratic").sum().backward()
    assert not cams.grad[0, 1].any() and cams.grad[0, 0].any()


# --- the pool, eq. 7


def test_standardize_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = [-1.341635, -0.447212, 0.447212, 1.341635]
    found = standardize(maps)
    assert found[0].flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert not found[1].any()


def test_standardize_is_batch_norm_of_one_picture():
    maps = torch.randn(5, 4, 6) * torch.tensor([1e-3, 1, 10, 0.1, 3]).view(5, 1, 1)
    torch.testing.assert_close(standardize(maps), nn.BatchNorm2d(5)(maps[None])[0].detach())


@torch.no_grad()
def slow_update(pool, rate, cams, logits, labels):
    """Picture by picture, with a BatchNorm2d as the authors have it."""
    norm = nn.BatchNorm2d(len(pool)).train()
    fresh = torch.zeros_like(pool)
    for maps, answer, label in zip(cams, logits, labels, strict=True):
        if answer.argmax() == label:
            fresh[label] += maps[label]
    return norm((pool + rate * norm(fresh[None])[0])[None])[0]


def test_updates_picture_by_picture():
    pool, slow = CausalContextPool(CLASSES, 3, 5, 0.1), torch.zeros(CLASSES, 3, 5)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        cams = torch.randn(9, CLASSES, 3, 5, generator=generator)
        logits = torch.randn(9, CLASSES, generator=generator)
        labels = torch.where(torch.arange(9) % 3 > 0, logits.argmax(1), 0)  # two in three are right
        pool.update(cams, logits, labels)
        slow = slow_update(slow, 0.1, cams, logits, labels)
        torch.testing.assert_close(pool.pool, slow, atol=1e-5, rtol=1e-5)
    assert pool.pool.std((1, 2)).max() > 0.5


def said(classes):
    """Logits that predict these classes."""
    return F.one_hot(torch.tensor(classes), CLASSES).float()


@pytest.mark.parametrize(("rate", "deviation"), [(0.01, 0.9535), (0.002, 0.5345), (0.001, 0.3015)])
def test_the_first_update_is_nearly_a_unit_map(rate, deviation):
    pool, cams = CausalContextPool(CLASSES, 8, 8, rate), 100 * torch.randn(1, CLASSES, 8, 8)
    pool.update(cams, said([2]), torch.tensor([2]))
    assert pool.pool[2].std(unbiased=False).item() == pytest.approx(deviation, abs=1e-4)
    assert not pool.pool[[0, 1, 3]].any()  # classes that no picture showed stay exactly 0
    before = pool.pool.clone()
    pool.update(cams, said([0]), torch.tensor([0]))
    torch.testing.assert_close(pool.pool[2], standardize(before)[2])
    for _ in range(10):
        pool.update(cams, said([0]), torch.tensor([0]))
    assert pool.pool[2].std(unbiased=False).item() == pytest.approx(1, abs=1e-2)


def test_a_hundred_updates_turn_a_map_as_far_as_published_numbers_say():
    old, new = torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    pool = CausalContextPool(1, 2, 2, 0.01)
    pool.pool.copy_(old[None])
    for _ in range(100):
        pool.update(100 * new[None, None], torch.ones(1, 1), torch.tensor([0]))
    assert (pool.pool[0] * new).mean().item() == pytest.approx(0.761, abs=2e-3)


def test_only_pictures_that_are_classified_right_count():
    cams, labels = torch.randn(3, CLASSES, 4, 4), torch.tensor([1, 1, 0])
    pool, paper = (CausalContextPool(CLASSES, 4, 4, 0.1, faithful_to=reading) for reading in ("code", "paper"))
    for one in (pool, paper):
        one.update(cams, said([1, 3, 0]), labels)
    assert pool.pool.flatten(1).any(1).tolist() == [True, True, False, False]
    assert paper.pool.flatten(1).any(1).tolist() == [True, True, False, True]  # the wrong one, for what it was taken
    torch.testing.assert_close(standardize(pool.pool)[1], standardize(cams[0])[1], atol=1e-2, rtol=1e-2)


def test_pictures_of_a_class_are_summed():
    cams = torch.randn(2, CLASSES, 4, 4) * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    pool = CausalContextPool(CLASSES, 4, 4, 1.0)
    pool.update(cams, said([1, 1]), torch.tensor([1, 1]))
    torch.testing.assert_close(pool.pool[1], standardize(cams.sum(0))[1], atol=1e-3, rtol=1e-3)


def test_parts_of_a_batch_count_as_one_batch():
    whole, parts = (CausalContextPool(CLASSES, 4, 4, 0.1) for _ in range(2))
    cams, logits = torch.randn(8, CLASSES, 4, 4), torch.randn(8, CLASSES)
    whole.update(cams, logits, logits.argmax(1))
    for part in range(0, 8, 3):
        one = slice(part, part + 3)
        parts.collect(cams[one], logits[one], logits[one].argmax(1))
    assert not parts.pool.any()
    parts.step()
    torch.testing.assert_close(parts.pool, whole.pool)
    parts.step(), whole.step()  # nothing is left over for the next step
    torch.testing.assert_close(parts.pool, whole.pool)


def test_the_pool_takes_no_gradient_and_half_precision():
    pool = CausalContextPool(CLASSES, 4, 4, 0.1)
    cams = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    pool.update(cams.bfloat16(), said([1, 2]), torch.tensor([1, 2]))
    assert pool.pool.dtype == torch.float32 and not pool.pool.requires_grad and pool.pool.any()
    assert list(pool.state_dict()) == ["pool"]


def test_enhanced_features_are_a_convolution_of_one_channel_of_the_pool():
    pool = CausalContextPool(CLASSES, 3, 5, 0.1, channels=6)
    pool.pool.normal_()
    features, classes = torch.randn(4, 6, 3, 5), torch.tensor([3, 0, 3, 1])
    for x, k, found in zip(features, classes, pool(features, classes), strict=True):
        shown = torch.zeros(1, CLASSES, 3, 5)
        shown[0, k] = pool.pool[k]
        torch.testing.assert_close(found, x + x * pool.project(shown)[0])
    assert pool.project.weight.shape == (6, CLASSES, 1, 1)


def test_an_empty_pool_scales_by_the_bias_alone():
    pool, features = CausalContextPool(CLASSES, 3, 3, 0.1, channels=6), torch.randn(2, 6, 3, 3)
    expected = features * (1 + pool.project.bias[:, None, None])
    torch.testing.assert_close(pool(features, torch.tensor([0, 1])), expected)


def test_other_sizes_and_missing_channels_are_refused():
    pool = CausalContextPool(CLASSES, 3, 5, 0.1, channels=6)
    with pytest.raises(RecipeError, match="holds maps of 3 x 5, and these are 4 x 5"):
        pool(torch.randn(2, 6, 4, 5), torch.tensor([0, 1]))
    with pytest.raises(RecipeError, match="these are 1 x 1"):
        pool.update(torch.randn(2, CLASSES, 1, 1), said([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="channels="):
        CausalContextPool(CLASSES, 3, 5, 0.1)(torch.randn(2, 6, 3, 5), torch.tensor([0, 1]))


# --- non-local blocks


def test_a_block_place_by_place():
    block = NonLocal(16)
    nn.init.normal_(block.norm.weight), nn.init.normal_(block.norm.bias)
    x = torch.randn(2, 16, 3, 4)
    expected = []
    for picture in x:
        q, k, v = (part(picture[None])[0].flatten(1).T for part in (block.query, block.key, block.value))  # [hw,.]
        rows = [torch.stack([torch.dot(q[i], k[j]) for j in range(12)]).softmax(0) @ v for i in range(12)]
        expected.append(torch.stack(rows).T.reshape(16, 3, 4))
    mixed = block.norm(block.mix(torch.stack(expected)))
    torch.testing.assert_close(block(x), x + mixed, atol=1e-5, rtol=1e-4)
    assert block.query.out_channels == block.key.out_channels == 2 and block.value.out_channels == 16


@pytest.mark.parametrize(
    ("name", "stage", "places"),
    [
        ("test_resnet", "last", ("stage2", "stage4", "stage5")),
        ("test_efficientnet", "last", ("stage3", "bn2")),
        ("test_resnet", "stage3", ("layer1.0", "stage3")),
        ("test_vit", "last", ("stage2",)),
    ],
)
def test_a_network_starts_unchanged_and_then_learns(name, stage, places):
    plain = create(name, stages=(stage,))
    before = state(plain)  # running statistics too
    network = NonLocalBackbone(plain, places)
    network.map_size(SIZE)
    assert same(plain, before) and plain.training
    network.eval()
    inputs = network.normalize(pictures(2))
    torch.testing.assert_close(network(inputs), plain.features(inputs)[stage])
    for block in network.blocks:
        nn.init.constant_(block.norm.weight, 0.3)
        assert not torch.allclose(network(inputs), plain.features(inputs)[stage])
        nn.init.zeros_(block.norm.weight)
    network(inputs).square().sum().backward()
    assert all(block.norm.weight.grad.any() for block in network.blocks)
    assert not plain.network._forward_hooks and not any(part._forward_hooks for part in plain.modules())


def test_places_must_lie_on_the_way():
    with pytest.raises(RecipeError, match="no layer 'stagee3'; did you mean 'stage3'"):
        NonLocalBackbone(backbone(), ("stagee3",))
    with pytest.raises(RecipeError, match="behind 'stage4': it comes after"):
        NonLocalBackbone(backbone(), ("stage2", "stage4"))


@pytest.mark.parametrize(
    ("name", "stage", "size", "places", "shape", "widths"),
    [
        ("vgg16", "stage5", 224, (*VGG_POOLS, "stage5"), (512, 14), (128, 256, 512, 512)),
        ("inception_v3", "stage4", 299, ("Pool2", "stage3", "stage4"), (768, 17), (192, 288, 768)),
    ],
)
def test_the_authors_networks_have_the_published_maps(name, stage, size, places, shape, widths):
    with torch.device("meta"):  # shapes without memory
        localizer = CICAM(create(name, stages=(stage,)), 200, size=size, non_local=places)
    assert localizer.pool.pool.shape == (200, shape[1], shape[1])
    assert localizer.network.channels == shape[0]
    assert tuple(block.value.in_channels for block in localizer.network.blocks) == widths


# --- the methods


def test_nl_ccam_is_a_classifier_with_combined_maps(batch):
    localizer = nl_ccam().eval()
    features = localizer.network(localizer.network.normalize(batch["image"]))
    weight, bias = localizer.head.weight, localizer.head.bias
    cams = torch.einsum("bchw,kc->bkhw", features, weight)
    logits = cams.mean((2, 3)) + bias
    found = localizer.localize(batch["image"], batch["label"])
    torch.testing.assert_close(found.logits, logits.detach(), atol=1e-4, rtol=1e-4)
    expected = slow_combine(cams, logits, "nlccam_quadratic").detach()
    torch.testing.assert_close(found.maps, expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(found.maps, localizer.localize(batch["image"]).maps) and not localizer.uses_labels
    losses = localizer(batch)
    assert list(losses) == ["classification"]
    assert losses["classification"].item() == pytest.approx(F.cross_entropy(logits, batch["label"]).item(), rel=1e-4)


def slow_branches(localizer, image):
    """One picture, in the letters of the paper."""
    x = localizer.network(localizer.network.normalize(image[None]))[0]  # [C,h,w]
    w, b = localizer.head.weight, localizer.head.bias
    plain = w @ x.mean((1, 2)) + b
    q = torch.zeros(1, *localizer.pool.pool.shape)
    q[0, plain.argmax()] = localizer.pool.pool[plain.argmax()]
    x_e = x + x * localizer.pool.project(q)[0]
    cams = torch.stack([(w[k, :, None, None] * x_e).sum(0) for k in range(len(w))])
    return plain, w @ x_e.mean((1, 2)) + b, cams


@pytest.mark.parametrize("rule", ["ci_quadratic", "sum_1"])
def test_two_looks_picture_by_picture(batch, rule):
    localizer = ci_cam(rule=rule).eval()
    plain, logits, cams = (
        torch.stack(p) for p in zip(*(slow_branches(localizer, i) for i in batch["image"]), strict=True)
    )
    found = localizer.localize(batch["image"])
    torch.testing.assert_close(found.logits, logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.maps, slow_combine(cams, logits, rule), atol=1e-3, rtol=1e-3)
    losses = localizer(batch)
    assert list(losses) == ["plain", "enhanced"] and not localizer.uses_labels
    assert losses["plain"].item() == pytest.approx(F.cross_entropy(plain, batch["label"]).item(), rel=1e-3)
    assert losses["enhanced"].item() == pytest.approx(F.cross_entropy(logits, batch["label"]).item(), rel=1e-3)
    assert len(set(plain.argmax(1).tolist())) > 1 and (plain - logits).abs().max() > 0.1


def test_the_label_does_not_choose_the_context_in_training_either(batch):
    looked_up = []
    for labels in (batch["label"], batch["label"].roll(1)):
        localizer = ci_cam().train()
        localizer.pool.register_forward_hook(lambda _, given, __: looked_up.append(given))
        localizer({**batch, "label": labels})
    (features, classes), (others, other_classes) = looked_up
    assert torch.equal(classes, other_classes) and torch.equal(features, others)
    assert torch.equal(classes, localizer.head(features).argmax(1))


def test_the_pool_learns_once_a_step_and_only_in_training(batch):
    localizer = ci_cam(rate=0.5).train()
    before = localizer.pool.pool.clone()
    with torch.no_grad():
        seen = localizer.branches(localizer.network.normalize(batch["image"]))
    labels = torch.where(torch.arange(6) < 4, seen.plain_logits.argmax(1), batch["label"])
    expected = slow_update(before, 0.5, localizer.head.cams(seen.features), seen.plain_logits, labels)
    localizer({"image": batch["image"], "label": labels})
    assert torch.equal(localizer.pool.pool, before)
    localizer.after_step()
    torch.testing.assert_close(localizer.pool.pool, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(expected, before, atol=0.1)
    localizer.eval()({"image": batch["image"], "label": labels})
    localizer.localize(batch["image"])
    assert localizer.pool._fresh is None


def test_everything_learns_but_the_pool_by_gradient(batch):
    localizer = ci_cam().train()
    sum(localizer(batch).values()).backward()
    gradients = {name: p.grad for name, p in localizer.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    # biases may be flat: a norm takes them away again, a softmax does not see what is added to every place
    new = {name: g for name, g in gradients.items() if "backbone" not in name and name.endswith("weight")}
    assert len(new) == 12 and all(gradient.abs().max() > 1e-4 for gradient in new.values())
    assert not localizer.pool.pool.requires_grad


def test_the_classifier_learns_at_its_own_rate():
    localizer = ci_cam()
    others, head = localizer.param_groups(RECIPE)
    assert head["lr_scale"] == 10 and {id(p) for p in head["params"]} == {id(p) for p in localizer.head.parameters()}
    learned = {id(p) for p in localizer.parameters() if p.requires_grad}
    assert {id(p) for p in [*others["params"], *head["params"]]} == learned
    assert len(others["params"]) + len(head["params"]) == len(learned)


def test_a_checkpoint_holds_the_pool_and_forgetting_it_changes_what_is_said(batch, tmp_path):
    kept = ci_cam().eval()
    engine.save(tmp_path / "ci-cam.safetensors", kept)
    fresh = ci_cam()
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.zero_()
    engine.restore(tmp_path / "ci-cam.safetensors", fresh.eval())
    found, back = kept.localize(batch["image"]), fresh.localize(batch["image"])
    torch.testing.assert_close(back.maps, found.maps)
    forgetful = copy.deepcopy(kept)
    forgetful.pool.pool.zero_()
    other = forgetful.localize(batch["image"])
    assert (other.logits.argmax(1) != found.logits.argmax(1)).any()
    assert not torch.allclose(other.maps, found.maps, rtol=0.1)


def test_a_copy_has_blocks_and_a_pool_of_its_own(batch):
    localizer = ci_cam().eval()
    other, before = copy.deepcopy(localizer), localizer.localize(batch["image"])
    with torch.no_grad():
        for value in other.parameters():
            value.normal_()
        other.pool.pool.normal_()
    assert torch.equal(localizer.localize(batch["image"]).maps, before.maps)
    assert not torch.allclose(other.localize(batch["image"]).maps, before.maps)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(RecipeError, match="holds maps of 4 x 4, and these are 8 x 8"):
        ci_cam().eval().localize(torch.rand(1, 3, 64, 64))


# --- the box rule


def test_the_second_threshold_is_the_mean_of_what_the_first_one_left():
    score = torch.zeros(10, 10)
    score[1:4, 1:4] = 1.0  # 9 pixels of weight 1
    score[5:9, 2:10] = 0.1  # 32 of weight .1, below the mean (9 + 3.2) / 100 = .122
    protocol = PROTOCOLS["nl-ccam"]
    both = engine.make_protocol(engine.Evaluate(protocol="nl-ccam", args={"resize": 10, "tau": 0.05}))
    assert protocol.mean_threshold and both.box(score).tolist() == [1, 1, 4, 4]
    one = engine.make_protocol(
        engine.Evaluate(protocol="nl-ccam", args={"resize": 10, "tau": 0.05, "mean_threshold": False})
    )
    assert one.box(score).tolist() == [2, 5, 10, 9]
    score[0, 9] = 0.09  # zero where the first threshold cuts it, or the mean would grow
    assert both.box(score).tolist() == [1, 1, 4, 4]


# --- through the engine


STAGE = {"backbone": {"name": "test_resnet", "stages": ["stage3"]}, "args": {"non_local": ["stage3"]}}


def recipe(*stages):
    shared = {"epochs": 2, "batch_size": 6, "optimizer": {"name": "adamw", "lr": 1e-3}}
    return engine.Recipe(
        name="tiny",
        data={"name": "scenes", "size": SIZE, "options": {"n": 12, "classes": CLASSES}},
        stages=[{**shared, **stage} for stage in stages],
        evaluate={"options": {"n": 6}, "args": {"resize": SIZE}},
    )


@pytest.mark.parametrize(("method", "args"), [("nl-ccam", {}), ("ci-cam", {"size": SIZE, "rate": 0.1})])
def test_a_recipe_trains_and_measures(method, args, tmp_path):
    stage = {**STAGE, "name": "only", "method": method, "args": {**STAGE["args"], **args}}
    found = engine.run(recipe(stage), tmp_path, device="cpu", progress=False)
    assert all(math.isfinite(step["total"]) for step in found.histories["only"].steps)
    scores = found.evaluator.compute()
    assert scores.n == 6 and math.isfinite(scores.gt_known) and math.isfinite(scores.top1_cls)
    again = engine.run(recipe(stage), tmp_path, device="cpu", progress=False, train=False)  # from its weights
    assert again.evaluator.compute() == scores
    if method == "ci-cam":
        assert found.localizer.pool.pool.any() and torch.equal(found.localizer.pool.pool, again.localizer.pool.pool)


def test_a_mistyped_argument_is_named():
    stage = {**STAGE, "name": "only", "method": "ci-cam", "args": {"non_local": [], "size": SIZE, "ratte": 0.1}}
    data = load("scenes", "train", size=SIZE, n=12, classes=CLASSES)
    with pytest.raises(RecipeError, match="did you mean 'rate'"):
        engine.build(recipe(stage).stages[0], data)


# --- several processes


def frozen_norms(localizer):
    for part in localizer.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train = lambda mode=True, part=part: part
            part.training = False
    return localizer


def fitted(accumulate=1):
    localizer = frozen_norms(opened(small()))
    training = engine.Training(epochs=2, batch_size=8, accumulate=accumulate, optimizer={"lr": 1e-3})
    history = engine.fit(localizer, Squares(24, size=SIZE), training, progress=False)
    flat = torch.cat([p.detach().flatten() for p in localizer.parameters()])
    return {"weights": flat, "pool": localizer.pool.pool, "losses": history.losses()}


def small():
    torch.manual_seed(0)
    return CICAM(backbone(), 3, size=SIZE, non_local=["stage3"], rate=0.3)


def work(rank, folder):
    return {"plain": fitted(), "parts": fitted(accumulate=2)}


@pytest.mark.slow
def test_two_processes_have_the_pool_of_one(tmp_path):
    alone, both = fitted(), together(work, tmp_path)
    assert not torch.allclose(alone["pool"], opened(small()).pool.pool, atol=0.1)
    for report in (both[0]["plain"], both[1]["plain"], both[0]["parts"], both[1]["parts"]):
        assert report["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        torch.testing.assert_close(report["pool"], alone["pool"], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(report["weights"], alone["weights"], atol=1e-5, rtol=1e-4)
