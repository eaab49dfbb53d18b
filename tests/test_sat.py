"""SAT: losses by hand, attention against matrices that are really made, every option, two processes as one."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distributed import together
from test_ts_cam import CLASSES, KINDS, SMALL, pictures, transformer
from torch import nn
from toys import Squares

from wsol_lib import distributed, engine
from wsol_lib.backbones import create
from wsol_lib.data import datasets, load
from wsol_lib.methods.sat import (
    CHOICES,
    SAT,
    SpatialQueryAttention,
    batch_area_loss,
    foregrounds,
    frozen_parts,
    normalization_loss,
    smooth,
    smoothing_kernel,
)
from wsol_lib.methods.ts_cam import TSCAM
from wsol_lib.methods.wend import binary_entropy, weighted_entropy
from wsol_lib.metrics import PROTOCOLS
from wsol_lib.recipe import load_recipe, recipe_names
from wsol_lib.types import RecipeError

LABELS = torch.tensor([4, 0, 2])


def sat(kind="plain", size=(32, 32), **options):
    """A method whose m is far from .5."""
    model = SAT(transformer(kind), CLASSES, **{"blocks": 2, **options})
    for parameter in model.spatial.values():
        nn.init.normal_(parameter, std=1.0)
    return model


def batch(height=32, width=32):
    return {"image": pictures(3, height, width), "label": LABELS}


def total(losses):
    return torch.stack(list(losses.values())).sum()


# --- the kernel and the losses


def test_kernels_to_six_digits():
    kernel = smoothing_kernel("code").flatten().tolist()
    corner, edge, centre = 0.002628, 0.046012, 0.805440
    assert kernel == pytest.approx([corner, edge, corner, edge, centre, edge, corner, edge, corner], abs=5e-7)
    kernel = smoothing_kernel("gaussian").flatten().tolist()
    assert [kernel[i] for i in (4, 1, 0)] == pytest.approx([0.1132, 0.1116, 0.1101], abs=5e-5)
    assert sum(kernel) == pytest.approx(1)


def test_ones_are_less_sure_at_the_border():
    smoothed = smooth(torch.ones(1, 4, 4), "code")[0, 0]
    assert smoothed[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == pytest.approx([0.900091] * 4, abs=1e-6)
    assert smoothed[0, 1:3].tolist() == smoothed[1:3, 0].tolist() == pytest.approx([0.948731] * 2, abs=1e-6)
    assert smoothed[1:3, 1:3].tolist() == [pytest.approx([1, 1], abs=1e-6)] * 2


def test_normalization_loss_by_hand():
    maps = torch.tensor([[[0.0, 1.0], [0.5, 0.2]]])
    assert normalization_loss(maps, None).item() == pytest.approx((0.25 + 0.16) / 4)
    corner, edge = 0.900091, 0.948731
    expected = (4 * corner * (1 - corner) + 8 * edge * (1 - edge)) / 16
    assert normalization_loss(torch.ones(2, 1, 4, 4)).item() == pytest.approx(expected, abs=1e-5)
    assert normalization_loss(torch.ones(2, 4, 4), "gaussian") > 2 * expected


def slow_normalization(maps, kernel):
    weights, total = smoothing_kernel(kernel).tolist(), 0.0
    for one in maps:
        padded = F.pad(one, (1, 1, 1, 1)).tolist()
        for y in range(one.shape[0]):
            for x in range(one.shape[1]):
                p = sum(weights[i][j] * padded[y + i][x + j] for i in range(3) for j in range(3))
                total += p * (1 - p)
    return total / maps.numel()


@pytest.mark.parametrize("kernel", ["code", "gaussian"])
def test_normalization_loss_place_by_place(kernel):
    maps = torch.rand(3, 4, 6)
    for given_maps in (maps, maps[:, None]):
        assert normalization_loss(given_maps, kernel).item() == pytest.approx(
            slow_normalization(maps, kernel), rel=1e-5
        )


def test_the_area_is_that_of_the_batch():
    maps = torch.cat([torch.full((1, 1, 3, 5), 0.1), torch.full((1, 1, 3, 5), 0.6)])
    assert batch_area_loss(maps, 0.25).item() == pytest.approx(0.10)
    assert batch_area_loss(maps, 0.25, per_image=True).item() == pytest.approx(0.25)
    assert batch_area_loss(maps[:, 0], 0.35).item() == pytest.approx(0, abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_losses_lie_in_their_range_and_do_not_mind_the_order(seed, target):
    maps = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(seed))
    assert 0 <= normalization_loss(maps) <= 0.25
    batch_wise, image_wise = (batch_area_loss(maps, target, per_image=each).item() for each in (False, True))
    assert 0 <= batch_wise <= image_wise + 1e-6
    assert batch_area_loss(maps.flip(0), target).item() == pytest.approx(batch_wise, abs=1e-6)


# --- the attention


def slow_attention(attention, x, query=None, product="after"):
    """(out Float[B,N,D], m Float[B,N] or None) with all matrices, head by head; the layers of timm's `attention`."""
    heads, width = attention.num_heads, attention.scale**-2
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    split = [tuple(part.split(round(width), dim=-1)) for part in (q, k, v)]
    logits = [
        attention.q_norm(a) @ attention.k_norm(b).transpose(1, 2) / width**0.5 for a, b, _ in zip(*split, strict=True)
    ]
    m = None if query is None else (sum(s[:, query] for s in logits) / heads).sigmoid()  # [B,N]
    out = []
    for s, values in zip(logits, split[2], strict=True):
        if m is not None and product == "before":
            s = s * m[:, None]
        weights = s.exp() / s.exp().sum(-1, keepdim=True)
        if m is not None and product == "after":
            weights = weights * m[:, None]
        out.append(weights @ values)
    return attention.proj(torch.cat(out, -1)), m


@pytest.mark.parametrize("kind", ["plain", "registers"])
@pytest.mark.parametrize("product", ["after", "before"])
@pytest.mark.parametrize("query", [-1, 0])
def test_attention_and_its_gradients_against_whole_matrices(kind, product, query):
    attention = transformer(kind).network.blocks[1].attn
    fast, x = SpatialQueryAttention(attention, query, product), torch.randn(2, 9, 24, requires_grad=True)
    with foregrounds([SimpleNamespace(attn=fast)]) as found:
        out = fast(x)
    expected, m = slow_attention(attention, x, query, product)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], m)
    assert m.min() < 0.35 and m.max() > 0.65
    wanted = [x, *attention.parameters()]
    pull = torch.randn_like(out)
    ours = torch.autograd.grad((out * pull).sum() + found[0].square().sum(), wanted)
    theirs = torch.autograd.grad((expected * pull).sum() + m.square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_logits_of_0_halve_the_attention():
    attention = transformer().network.blocks[0].attn
    with torch.no_grad():
        attention.qkv.weight[:24] = 0  # queries
        attention.qkv.bias[:24] = 0
        attention.proj.bias.zero_()
    x = torch.randn(2, 9, 24)
    changed = SpatialQueryAttention(attention)
    torch.testing.assert_close(changed(x), attention(x) / 2)


def test_an_m_of_1_is_timms_attention():
    attention = transformer("registers", scale_attn_norm=True).network.blocks[0].attn
    changed = SpatialQueryAttention(attention)
    changed.foreground = nn.Identity()
    changed.foreground.forward = torch.ones_like
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(changed(x), attention(x))


def test_dropout_and_names_are_timms():
    attention = transformer(attn_drop_rate=0.5).network.blocks[0].attn
    changed, x = SpatialQueryAttention(attention).train(), torch.randn(2, 9, 24)
    assert not torch.equal(changed(x), changed(x))
    torch.testing.assert_close(changed.eval()(x), changed(x))
    assert list(dict(changed.named_parameters())) == list(dict(attention.named_parameters()))


def test_gated_attention_is_refused():
    attention = transformer().network.blocks[0].attn
    attention.gate = nn.Linear(24, 24)
    with pytest.raises(RecipeError, match="gated"):
        SpatialQueryAttention(attention)


def test_half_precision_gives_maps_in_full():
    model = sat()
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.look(pictures())[1]
        sharp = normalization_loss(maps.clamp(min=0.997), "code")
    assert maps.dtype == sharp.dtype == torch.float32
    torch.testing.assert_close(sharp, normalization_loss(maps.clamp(min=0.997), "code"), atol=1e-6, rtol=0)
    torch.testing.assert_close(maps, model.look(pictures())[1], atol=0.05, rtol=0.05)


# --- the method against a plain one


def slow_look(model, images, product="after"):
    """Logits and M with every token and every matrix written out."""
    network, inputs = model.network, model.backbone.normalize(images)
    patches = network.patch_embed(inputs).flatten(1, 2)  # [B,N,D]
    n, (height, width) = len(images), (side // 8 for side in images.shape[2:])
    prefix = [token for token in (network.cls_token, network.reg_token, getattr(network, "dist_token", None))
              if token is not None]  # fmt: skip
    tokens = torch.cat([*(token.expand(n, -1, -1) for token in prefix), patches], 1) + network.pos_embed
    own = model.query == "token"
    if own:
        tokens = torch.cat([tokens, (model.spatial["token"] + model.spatial["position"]).expand(n, -1, -1)], 1)
    found, depth = [], len(network.blocks)
    for i, block in enumerate(network.blocks):
        query = None if i < depth - model.blocks else -1 if own else 0
        out, m = slow_attention(block.attn, block.norm1(tokens), query, product)
        tokens = tokens + block.ls1(out)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        found += [] if m is None else [m]
    start = network.num_prefix_tokens
    final = network.norm(tokens)[:, start : start + patches.shape[1]]
    semantics = F.conv2d(final.transpose(1, 2).unflatten(2, (height, width)), model.head.weight, padding=1)
    logits = semantics.mean((2, 3)) + model.head.bias
    maps = sum(found)[:, start : start + patches.shape[1]] / len(found)
    return logits, maps.unflatten(1, (height, width))


def slow_losses(model, images, product):
    logits, maps = slow_look(model, images, product)
    area = (maps.mean() - 0.25).abs()
    kernel = smoothing_kernel("code").float()
    smoothed = F.conv2d(maps[:, None], kernel[None, None], padding=1)
    return F.cross_entropy(logits, LABELS) + area + (smoothed - smoothed.square()).mean()


@pytest.mark.parametrize("kind", ["plain", "registers", "distilled"])
@pytest.mark.parametrize("query", ["token", "class"])
@pytest.mark.parametrize("product", ["after", "before"])
def test_the_method_and_its_gradients_against_whole_matrices(kind, query, product):
    model = sat(kind, query=query, product=product)
    slow, learned = copy.deepcopy(model), [p for p in model.parameters() if p.requires_grad]
    logits, maps = slow_look(slow, pictures(), product)
    found = model.localize(pictures())
    torch.testing.assert_close(found.logits, logits.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.maps, maps.detach(), atol=1e-5, rtol=1e-4)
    loss, expected = total(model.losses(batch())), slow_losses(slow, pictures(), product)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(loss, learned)
    theirs = torch.autograd.grad(expected, [p for p in slow.parameters() if p.requires_grad])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_earlier_blocks_are_timms_own_and_the_token_is_last():
    model = sat(blocks=1)
    assert [isinstance(b.attn, SpatialQueryAttention) for b in model.network.blocks] == [False] * 3 + [True]
    seen = []
    model.network.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.localize(pictures())
    assert seen[0].shape == (3, 1 + 16 + 1, 24)
    spatial = model.spatial["token"] + model.spatial["position"]
    torch.testing.assert_close(seen[0][:, -1], spatial[0].expand(3, -1))
    assert not model.network.norm_pre._forward_pre_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_query_the_network_is_timms(kind):
    """Table 5: the class token's attention, stretched, and nothing else changed."""
    model, plain = sat(kind, query="attention"), TSCAM(transformer(kind), CLASSES)
    plain.head.load_state_dict(model.head.state_dict())
    found, expected = model.localize(pictures()), plain.localize(pictures())
    assert torch.equal(found.logits, expected.logits) and not len(model.spatial)
    low, high = found.maps.amin((1, 2)), found.maps.amax((1, 2))
    assert torch.equal(low, torch.zeros(3)) and high.tolist() == pytest.approx([1, 1, 1])
    losses = model.losses(batch())
    (losses["area"] + losses["normalization"]).backward()
    assert model.network.blocks[-1].attn.qkv.weight.grad.any() and model.network.cls_token.grad.any()


@pytest.mark.parametrize(("kind", "size"), [("plain", (32, 48)), ("registers", (64, 40)), ("pre-norm", (40, 40))])
def test_other_sizes_of_pictures(kind, size):
    model = sat(kind)
    found = model.localize(pictures(2, *size))
    assert found.maps.shape == (2, size[0] // 8, size[1] // 8) and found.logits.shape == (2, CLASSES)
    assert (found.maps >= 0).all() and (found.maps <= 1).all()
    if kind != "pre-norm":
        small = sat(kind)
        torch.testing.assert_close(small.look(pictures())[1], slow_look(small, pictures())[1], atol=1e-5, rtol=1e-4)


def test_localizing_does_not_depend_on_the_mode_and_leaves_it():
    model = SAT(transformer(drop_path_rate=0.5), CLASSES).train()
    torch.testing.assert_close(model.localize(pictures()).logits, model.eval().localize(pictures()).logits)
    model.train().localize(pictures())
    assert model.training and not any(part._forward_hooks for part in model.modules())


def test_other_patches():
    backbone = create("vit_tiny_patch16_224", img_size=36, patch_size=6, embed_dim=24, depth=3, num_heads=3)
    assert SAT(backbone, CLASSES).localize(pictures(1, 36, 36)).maps.shape == (1, 6, 6)
    assert SAT(create("deit_tiny_patch16_224", depth=3), 3).localize(pictures(1, 224, 224)).maps.shape == (1, 14, 14)


# --- options


def test_cross_entropy_alone_reaches_the_token():
    model = sat(area_weight=0, sharpen_weight=0)
    losses = model.losses(batch())
    assert list(losses) == ["classification"]
    losses["classification"].backward()
    assert all(parameter.grad.any() for parameter in model.spatial.values())


def test_prices_and_the_second_loss():
    plain, dear = sat().losses(batch()), sat(area_weight=3, sharpen_weight=0.5).losses(batch())
    assert list(plain) == ["classification", "area", "normalization"]
    assert dear["area"].item() == pytest.approx(3 * plain["area"].item())
    assert dear["normalization"].item() == pytest.approx(plain["normalization"].item() / 2)
    model = sat()
    smoothed = smooth(model.look(pictures())[1], "code")
    entropy = sat(sharpen="entropy").losses(batch())["entropy"]
    torch.testing.assert_close(entropy, binary_entropy(smoothed).mean())
    entropy = sat(sharpen="weighted-entropy").losses(batch())["weighted-entropy"]
    torch.testing.assert_close(entropy, weighted_entropy(smoothed, 0.1, 6, 0.3, 0.3))
    maps = model.look(pictures())[1]
    torch.testing.assert_close(sat(kernel=None).losses(batch())["normalization"], normalization_loss(maps, None))
    area = sat(area=0.6, per_image=True).losses(batch())["area"]
    torch.testing.assert_close(area, (maps.mean((1, 2)) - 0.6).abs().mean())


def test_the_class_token_may_name():
    for query in ("token", "attention"):
        model = sat(names="class", query=query)
        found = model.localize(pictures())
        with torch.no_grad():
            tokens = model.eval().tokens(model.backbone.normalize(pictures()))
        torch.testing.assert_close(found.logits, F.linear(tokens[:, 0], model.head.weight, model.head.bias))
        assert found.maps.shape == (3, 4, 4)
        assert total(model.losses(batch())).isfinite()


@pytest.mark.parametrize("names", ["patches", "class"])
def test_two_stages_begin_with_the_weights_of_the_first(names):
    first = TSCAM(transformer(), CLASSES)
    nn.init.normal_(first.head.weight, std=0.5)
    second = SAT(create("vit_tiny_patch16_224", **SMALL), CLASSES, start=first, blocks=2, names=names)
    theirs, ours = first.network.state_dict(), second.network.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    if names == "patches":
        assert torch.equal(first.head.weight, second.head.weight)
    second.network.pos_embed.data.zero_()
    assert first.network.pos_embed.any(), "the weights are copied, not shared"
    with pytest.raises(RecipeError, match="cannot start from TSCAM: other network or classes"):
        SAT(transformer("registers"), CLASSES, start=first)
    if names == "patches":
        with pytest.raises(RecipeError, match="cannot start from TSCAM"):
            SAT(transformer(), CLASSES + 1, start=first)


def test_how_the_token_starts():
    class_token = transformer().network.cls_token.detach()
    tokens = {name: SAT(transformer(), CLASSES, initial=name).spatial for name in CHOICES["initial"]}
    assert not tokens["zeros"]["token"].any() and torch.equal(tokens["class"]["token"], class_token)
    assert all(0 < spatial["position"].abs().max() <= 0.1 for spatial in tokens.values())
    assert 0 < tokens["random"]["token"].abs().max() <= 0.1


@pytest.mark.parametrize("name", CHOICES)
def test_unknown_choices_are_refused(name):
    with pytest.raises(RecipeError, match=f"SAT has no {name} 'nothing': choose one of "):
        SAT(transformer(), CLASSES, **{name: "nothing"})


def test_unfit_networks_are_refused():
    for blocks in (0, 5):
        with pytest.raises(RecipeError, match=f"1 to 4 blocks of vit_tiny_patch16_224, not {blocks}"):
            SAT(transformer(), CLASSES, blocks=blocks)
    with pytest.raises(RecipeError, match="test_resnet is no VisionTransformer"):
        SAT(create("test_resnet"), CLASSES)
    taken = transformer()
    SAT(taken, CLASSES)
    with pytest.raises(RecipeError, match="made anew for each method"):
        SAT(taken, CLASSES)


EARLY, LATE = {"blocks.0", "blocks.1"}, {"blocks.2", "blocks.3"}
FREE = {"head", "spatial"}
LEARN = {
    "a": {"embeddings", "norm", *EARLY, *LATE, *FREE},
    "b": {"norm", *EARLY, *LATE, *FREE},
    "c": {"norm", *LATE, *FREE},
    "d": {"norm", *LATE, *FREE},
    "e": FREE,
}


def part_of(name):
    short = name.removeprefix("backbone.network.")
    if re.match("patch_embed|pos_embed|cls_token", short):
        return "embeddings"
    return re.match(r"blocks\.\d|[a-z]+", short)[0]


@pytest.mark.parametrize("preset", "abcde")
def test_what_a_preset_frees(preset):
    model = sat(frozen=preset)
    total(model.losses(batch())).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {part_of(name) for name in learned} == LEARN[preset]
    halves = {re.sub(r".*blocks\.\d\.", "", name).split(".")[0] for name in learned if "blocks.3" in name}
    assert halves == {"a": {"norm1", "attn", "norm2", "mlp"}, "d": {"norm1", "attn"}, "e": set()}.get(
        preset, {"norm1", "attn", "norm2", "mlp"}
    )
    trained = {id(p) for group in model.param_groups(SimpleNamespace(head_rate=1.0)) for p in group["params"]}
    assert trained == {id(parameter) for name, parameter in model.named_parameters() if name in learned}


def test_presets_freeze_ever_more():
    names = dict(transformer().network.named_parameters())
    counts = [sum(name.startswith(frozen_parts(preset, 4, 2)) for name in names) for preset in "abcde"]
    assert counts[0] == 0 and counts == sorted(set(counts)) and counts[-1] == len(names)


def test_tokens_do_not_decay_and_learn_at_the_heads_rate():
    model = sat()
    groups = model.param_groups(SimpleNamespace(head_rate=10.0))
    for parameter in model.spatial.values():
        (group,) = [group for group in groups if any(parameter is p for p in group["params"])]
        assert group["weight_decay"] == 0 and group["lr_scale"] == 10


# --- recipes and learning


RECIPES = [name for name in recipe_names() if re.search("/(sat|ts-cam)", name)]
AREAS = {"scenes": 0.1, "ilsvrc": 0.35, "tiny-imagenet": 0.35}  # the paper's .25 elsewhere


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_the_methods_take(name):
    recipe = load_recipe(name)
    stage = recipe.stages[-1]
    small = {"depth": SMALL["depth"]} if name.endswith("lite0") else SMALL
    backbone = {**stage.backbone, **small, "weights": "random"}
    data = load("scenes", "train", size=32, n=12, classes=4)
    earlier = {argument: TSCAM(create(**backbone), 4) for argument in stage.needs}
    model = engine.build(stage.model_copy(update={"backbone": backbone}), data, earlier)
    assert len(model.network.blocks) == SMALL["depth"] and model.network.blocks[-1].drop_path1.drop_prob > 0
    assert recipe.data.name in datasets() and recipe.evaluate.protocol in PROTOCOLS
    assert replace(PROTOCOLS[recipe.evaluate.protocol], **recipe.evaluate.args)
    assert timm.is_model(stage.backbone["name"]) and stage.backbone["stages"] == ["last"]
    if isinstance(model, SAT):
        assert model.area == AREAS.get(name.split("/")[0], 0.25) and model.blocks == 3


def small():
    torch.manual_seed(0)
    backbone = create("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2)
    return SAT(backbone, 3, blocks=2)


def fitted(accumulate=1, epochs=2):
    model = small()
    training = engine.Training(
        epochs=epochs, batch_size=24, accumulate=accumulate, optimizer={"name": "adamw", "lr": 3e-3}
    )
    history = engine.fit(model, Squares(48), training, progress=False)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    areas = [step["area"] for step in history.steps]
    return {"weights": flat, "losses": history.losses(), "areas": areas}, model


def test_it_learns_squares_and_their_area():
    report, model = fitted(epochs=40)
    data = Squares(48)
    found = model.localize(torch.stack([data[i]["image"] for i in range(48)]))
    assert (found.logits.argmax(1) == data.labels).float().mean() > 0.9
    assert report["losses"][-1] < report["losses"][0] / 2 and report["areas"][-1] < 0.1


PARTS = (torch.tensor([[[0.1, 0.1]], [[0.2, 0.2]], [[0.3, 0.3]]]), torch.tensor([[[0.6, 0.6]]]))


def work(rank, folder):
    part = PARTS[rank].clone().requires_grad_()
    whole, each = batch_area_loss(part, 0.25), batch_area_loss(part, 0.25, per_image=True)
    whole.backward()
    return {
        "whole": whole.detach(),
        "each": each.detach(),
        "gradient": part.grad / distributed.world(),  # as a distributed wrapper would average it
        "fit": fitted()[0],
    }


@pytest.mark.slow
def test_two_processes_have_the_area_of_one_batch(tmp_path):
    maps = torch.cat(PARTS).requires_grad_()
    loss = batch_area_loss(maps, 0.25)
    loss.backward()
    both, (alone, _) = together(work, tmp_path), fitted()
    assert loss.item() == pytest.approx(0.05)
    for report in both:
        assert report["whole"].item() == pytest.approx(0.05)
        assert report["each"].item() == pytest.approx((0.15 + 0.05 + 0.05 + 0.35) / 4)
        assert report["fit"]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        torch.testing.assert_close(report["fit"]["weights"], alone["weights"], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(torch.cat([report["gradient"] for report in both]), maps.grad)


@pytest.mark.parametrize("bad", [{"area": 25}, {"area": -0.1}, {"area": float("nan")}, {"sharpen_weight": -1.0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(RecipeError, match="share of the batch"):
        sat(**bad)


def test_tokens_decay_as_in_the_released_code_if_asked():
    for decay_tokens in (False, True):
        model = sat(decay_tokens=decay_tokens)
        groups = model.param_groups(SimpleNamespace(head_rate=1.0))
        spared = {id(p) for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
        network = model.backbone.network
        for token in (network.cls_token, network.pos_embed, *model.spatial.values()):
            assert (id(token) in spared) != decay_tokens
        assert id(model.head.bias) in spared and id(model.head.weight) not in spared


def test_a_mask_is_refused():
    attention = sat().backbone.network.blocks[-1].attn
    with pytest.raises(NotImplementedError, match="no mask"):
        attention(torch.zeros(1, 3, attention.qkv.in_features), is_causal=True)
