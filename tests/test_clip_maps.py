"""Maps from language: open_clip's own numbers, every map by explicit matrices, refinement by hand, any picture size."""

from __future__ import annotations

import importlib.util
import math
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsol_lib import maps
from wsol_lib.methods import clip_maps
from wsol_lib.methods.clip_maps import (
    ClipMaps,
    affinity,
    attention_maps,
    attribute,
    box_mask,
    encode,
    log_odds,
    naclip,
    neighbourhood,
    positions,
    refine,
    sclip_attention,
    text_maps,
)
from wsol_lib.training import make_optimizer
from wsol_lib.types import RecipeError

open_clip = pytest.importorskip("open_clip")

KINDS = ("vanilla", "sclip", "naclip", "clip-es", "attention")
VISION = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 6, "vocab_size": 40, "width": 32, "heads": 2, "layers": 1}
TOWERS = {"plain": {}, "scaled": {"ls_init_value": 0.5}, "mean": {"pool_type": "avg", "final_ln_after_pool": True}}
LABELS = torch.tensor([4, 0, 2])


def clip(kind="plain", **vision):
    """A small model whose attention is not flat, in double precision."""
    torch.manual_seed(0)
    model = open_clip.CLIP(32, {**VISION, **TOWERS[kind], **vision}, TEXT).eval().double()
    for block in model.visual.transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=0.3)
        nn.init.normal_(block.attn.in_proj_bias, std=0.3)
        nn.init.normal_(block.attn.out_proj.bias, std=0.1)
    return model


def texts(n=5, seed=2):
    return 3 * torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def backgrounds():
    return texts(4, seed=3)


def pictures(n=3, height=32, width=32):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def method(kind="vanilla", model=None, **options):
    return ClipMaps(model or clip(), texts(), **{"kind": kind, "background": backgrounds(), **options})


# --- a slow reference: one picture at a time, every matrix made


def matrices(block, a, score):
    """Attention matrices of the heads, and what they give after the out-projection; `a` is ln_1's output [1+N,D]."""
    own = block.attn
    width = a.shape[1] // own.num_heads
    q, k, v = (F.linear(a, w, b) for w, b in zip(own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True))
    heads = [slice(i * width, (i + 1) * width) for i in range(own.num_heads)]
    found = [score(q[:, h] / width**0.25, k[:, h] / width**0.25) for h in heads]
    mixed = torch.cat([matrix @ v[:, h] for matrix, h in zip(found, heads, strict=True)], 1)
    return torch.stack(found), block.ls_1(mixed @ own.out_proj.weight.T + own.out_proj.bias)


def plain(q, k):
    return (q @ k.T).softmax(1)


def self_self(q, k):
    return (q @ q.T).softmax(1) + (k @ k.T).softmax(1)


def near(grid, std):
    omega = torch.zeros(1 + grid[0] * grid[1], 1 + grid[0] * grid[1], dtype=torch.float64)
    for i in range(len(omega) - 1):
        for j in range(len(omega) - 1):
            (y, x), (v, u) = divmod(i, grid[1]), divmod(j, grid[1])
            omega[i + 1, j + 1] = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * std**2))
    return lambda _, k: (k @ k.T + omega).softmax(1)


def whole(block, x, score=plain):
    matrix, mixed = matrices(block, block.ln_1(x), score)
    x = x + mixed
    return matrix, x + block.ls_2(block.mlp(block.ln_2(x)))


def resized(model, size):
    """The same model for pictures of another size, its weights resized by open_clip."""
    other = clip(image_size=size, **({"ls_init_value": 0.5} if hasattr(last(model).ls_1, "gamma") else {}))
    state = model.state_dict()
    open_clip.model.resize_pos_embed(state, other)
    other.load_state_dict(state)
    return other


def last(model):
    return model.visual.transformer.resblocks[-1]


def embedded(model, picture):
    """Tokens [1+N,D] before the first block of one normalised picture, patch by patch."""
    visual, (_, height, width) = model.visual, picture.shape
    rows = [picture[:, y : y + 8, x : x + 8] for y in range(0, height, 8) for x in range(0, width, 8)]
    patches = torch.stack([(visual.conv1.weight * row).sum((1, 2, 3)) for row in rows])
    return visual.ln_pre(torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding)


def slow_boxes(cam):
    levels = (cam.numpy() * 255).astype(np.uint8)
    shown = cv2.threshold(levels, int(0.4 * levels.max()), 255, cv2.THRESH_BINARY)[1]
    mask = torch.zeros_like(cam)
    for contour in cv2.findContours(shown, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        mask[y : y + h, x : x + w] = 1
    return mask


def stretched(one):
    return (one - one.min()) / (one.max() - one.min())


def slow_clip_es(model, x, attention, own, rivals, grid):
    """The softmax itself is differentiated, matrices are multiplied out."""
    block, visual = last(model), model.visual
    a = block.ln_1(x).detach().requires_grad_()
    with torch.enable_grad():
        _, mixed = matrices(block, a, plain)
        out = x + mixed
        out = out + block.ls_2(block.mlp(block.ln_2(out)))
        image = visual.ln_post(out)[1:].mean(0) @ visual.proj
        logits = torch.stack([model.logit_scale.exp() * torch.cosine_similarity(image, t, 0) for t in [own, *rivals]])
        (gradient,) = torch.autograd.grad(logits.softmax(0)[0], a)
    cam = stretched((a.detach()[1:] * gradient[1:].mean(0)).sum(1).relu().view(grid))
    spread = attention
    for _ in range(3):
        spread = spread / spread.sum(0, keepdim=True)
        spread = spread / spread.sum(1, keepdim=True)
    spread = (spread + spread.T) / 2
    spread = (spread @ spread) * slow_boxes(cam).flatten()[None]
    return stretched((spread @ cam.flatten()[:, None]).view(grid))


@torch.no_grad()
def slow(localizer, images, labels):
    """Logits and maps, picture by picture."""
    model, grid = localizer.model.module, tuple(side // 8 for side in images.shape[2:])
    model = resized(model, images.shape[2:])
    visual, blocks = model.visual, model.visual.transformer.resblocks
    units = F.normalize(texts(), dim=1)
    found = []
    for b, picture in enumerate(localizer.normalize(images)):
        x, attention = embedded(model, picture), []
        for block in blocks:
            before = x
            matrix, x = whole(block, x)
            attention.append(matrix.mean(0))
        image = visual.ln_post(x)[0] @ visual.proj
        logits = model.logit_scale.exp() * units @ F.normalize(image, dim=0)
        label = int(logits.argmax()) if labels is None else int(labels[b])
        if localizer.kind == "clip-es":
            mean = torch.stack(attention[-8:]).mean(0)[1:, 1:]
            one = slow_clip_es(model, before, mean, texts()[label], backgrounds(), grid)
        elif localizer.kind == "attention":
            one = sum(matrix[0, 1:] for matrix in attention).view(grid)
        else:
            if localizer.kind == "sclip":
                _, x = whole(blocks[-1], before, self_self)
            if localizer.kind == "naclip":
                _, x = matrices(blocks[-1], blocks[-1].ln_1(before), near(grid, 5.0))
            patches = visual.ln_post(x)[1:] @ visual.proj
            one = torch.stack([torch.dot(p, units[label]) / p.norm() for p in patches]).view(grid)
        found.append((logits, one))
    return tuple(map(torch.stack, zip(*found, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tower", ["plain", "scaled"])
@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
@pytest.mark.parametrize("labels", [None, LABELS])
def test_every_map_by_explicit_matrices(kind, tower, size, labels):
    localizer = method(kind, clip(tower))
    found = localizer.localize(pictures(3, *size), labels)
    logits, expected = slow(localizer, pictures(3, *size), labels)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.maps, expected, atol=1e-9, rtol=1e-6)
    assert found.maps.shape == (3, size[0] // 8, size[1] // 8)
    assert (found.maps.flatten(1).std(1) > 0.01 * found.maps.abs().mean()).all()


# --- open_clip's own numbers


@pytest.mark.parametrize("tower", TOWERS)
def test_vanilla_is_what_open_clip_returns(tower):
    localizer = method(model=clip(tower))
    model, inputs, units = localizer.model.module, localizer.normalize(pictures()), F.normalize(texts(), dim=1)
    found = localizer.localize(pictures(), LABELS)
    with torch.no_grad():
        embedding = model.encode_image(inputs, normalize=True)
        taken = model.visual.forward_intermediates(inputs, 1, normalize_intermediates=True)["image_intermediates"][0]
    torch.testing.assert_close(found.logits, model.logit_scale.exp() * embedding @ units.T)
    expected = torch.einsum("bchw,cd,kd->bkhw", taken, model.visual.proj, units)
    expected = expected / torch.einsum("bchw,cd->bdhw", taken, model.visual.proj).norm(dim=1, keepdim=True)
    torch.testing.assert_close(localizer.class_maps(pictures()), expected)
    torch.testing.assert_close(found.maps, expected[range(3), LABELS])


def test_a_tower_that_gives_its_tokens_too():
    model = clip()
    expected = method(model=model).localize(pictures())
    model.visual.output_tokens = True
    found = method(model=model).localize(pictures())
    torch.testing.assert_close(found.logits, expected.logits)
    inputs = method(model=model).normalize(pictures())
    tokens = model.visual(inputs)[1]  # [B,N,D]
    features = (tokens @ model.visual.proj).transpose(1, 2).unflatten(2, (4, 4))
    labels = expected.logits.argmax(1)
    torch.testing.assert_close(found.maps, text_maps(features, texts())[range(3), labels])


def test_attention_maps_are_the_matrices_of_the_last_blocks_alone():
    model, localizer = clip(layers=10), method(model=clip(layers=10))
    inputs, blocks = localizer.normalize(pictures(2)), model.visual.transformer.resblocks
    with torch.no_grad(), attention_maps(blocks[-8:]) as found:
        encode(model.visual, inputs)
    assert len(found) == 8 and not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    x = embedded(model, inputs[1])
    for i, block in enumerate(blocks):
        matrix, x = whole(block, x)
        if i >= 2:
            torch.testing.assert_close(found[i - 2][1], matrix.mean(0))


def test_clip_es_looks_at_eight_blocks(monkeypatch):
    asked = []
    monkeypatch.setattr(clip_maps, "attention_maps", lambda blocks: asked.append(len(blocks)) or attention_maps(blocks))
    method("clip-es", clip(layers=10)).localize(pictures(1))
    method("sclip").localize(pictures(1))
    assert asked == [8, 0]


# --- SCLIP and NACLIP


def qkv(n=5):
    return torch.randn(3, 2, 4, n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rows_of_sclip_sum_to_two():
    q, k, v = qkv()
    torch.testing.assert_close(sclip_attention(q, k, torch.ones_like(v)), 2 * torch.ones_like(v))


def test_sclip_by_hand():
    """Two tokens, one channel: q q^T = [[0,0],[0,1]] log 3, and k says nothing."""
    q, k = torch.tensor([0, math.log(3) ** 0.5])[None, None, :, None], torch.zeros(1, 1, 2, 1)
    v = torch.tensor([4.0, 8.0])[None, None, :, None]
    torch.testing.assert_close(sclip_attention(q, k, v).flatten(), torch.tensor([6.0 + 6, 1 + 6 + 6]))


def test_neighbourhood_by_hand():
    near, far = math.exp(-1 / 8), math.exp(-2 / 8)  # std 2, distances 1 and sqrt 2
    expected = [[0, 0, 0, 0, 0], [0, 1, near, near, far], [0, near, 1, far, near], [0, near, far, 1, near]]
    omega = neighbourhood((2, 2), 2.0)
    torch.testing.assert_close(omega[:4], torch.tensor(expected))
    assert neighbourhood((1, 3), 2.0)[1, 3] == pytest.approx(math.exp(-4 / 8))
    assert neighbourhood((3, 1), 2.0).equal(neighbourhood((1, 3), 2.0))


def test_a_gaussian_without_end_lifts_all_patches_alike():
    omega = neighbourhood((2, 3), math.inf)
    assert omega[1:, 1:].eq(1).all() and not omega[0].any() and not omega[:, 0].any()
    model, x = clip(), torch.randn(1, 7, 64, dtype=torch.float64)
    block, a = last(model), last(model).ln_1(x)[0]

    def lifted(_, k):
        weights = (k @ k.T).exp()
        weights[1:, 1:] *= math.e
        return weights / weights.sum(1, keepdim=True)

    torch.testing.assert_close(naclip(block, x, omega)[0], matrices(block, a, lifted)[1])


def test_a_gaussian_of_no_width_lifts_each_patch_itself():
    assert neighbourhood((2, 3), 1e-3).equal(torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 1, 1])))


def test_the_std_reaches_the_map():
    narrow, wide = (method("naclip", gaussian_std=std).localize(pictures(), LABELS).maps for std in (0.5, 5))
    assert (narrow - wide).abs().max() > 1e-4
    assert method("naclip").localize(pictures(), LABELS).maps.equal(wide)


# --- CLIP-ES


def test_log_odds_by_hand():
    logits, background = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, -9.0]])
    labels = torch.tensor([0, 1])
    against = log_odds(logits, background, labels)
    torch.testing.assert_close(against[0], torch.tensor(2 - math.log(2)))
    torch.testing.assert_close(log_odds(logits, background, labels, "all")[0], torch.tensor(2 - math.log(3)))
    torch.testing.assert_close(
        log_odds(logits, background, labels, "all").sigmoid(),
        torch.cat([logits, background], 1).softmax(1)[range(2), labels],
    )


def pooled(model, tokens):
    """The mean of the patches, embedded."""
    return (model.visual.ln_post(tokens) @ model.visual.proj)[:, 1:].mean(1)


def score(model, own, softmax):
    """The score of a text against backgrounds(), of tokens of the last block: as a softmax or as its log-odds."""

    def scored(tokens):
        rows = F.normalize(torch.cat([own[None], backgrounds()]), dim=1).to(tokens)
        logits = model.logit_scale.exp() * F.normalize(pooled(model, tokens), dim=1) @ rows.T
        nought = torch.zeros(len(tokens), dtype=torch.long)
        return logits.softmax(1)[:, 0] if softmax else log_odds(logits[:, :1], logits[:, 1:], nought)

    return scored


def test_the_gradient_of_the_softmax_gives_the_same_map():
    model = clip()
    seen = encode(model.visual, pictures().double())
    maps_of = [attribute(last(model), seen.before, score(model, texts()[0], soft), (4, 4)) for soft in (False, True)]
    torch.testing.assert_close(*maps_of)
    assert maps_of[0].amin((1, 2)).tolist() == [0] * 3 and maps_of[0].amax((1, 2)).tolist() == [1] * 3


def test_a_sure_score_still_has_a_map():
    """In single precision a softmax of 1 has no gradient; its log-odds have."""
    model = clip()
    model.logit_scale.data.fill_(math.log(1000))
    with torch.no_grad():
        seen = encode(model.visual, pictures(1).double())
        own = pooled(model, seen.after)[0]
    own = F.normalize(own, dim=0) + F.normalize(texts()[0], dim=0) / 2
    expected = attribute(last(model), seen.before, score(model, own, False), (4, 4))
    block, before = last(model.float()), seen.before.float()
    assert score(model, own, True)(block(before)) == 1
    assert not attribute(block, before, score(model, own, True), (4, 4)).any()
    found = attribute(block, before, score(model, own, False), (4, 4))
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=0)


def test_backgrounds_change_the_map_and_other_classes_do_not():
    found = method("clip-es").localize(pictures(), LABELS).maps
    other = method("clip-es", background=texts(4, seed=9)).localize(pictures(), LABELS).maps
    assert (found - other).abs().amax((1, 2)).min() > 1e-3
    turned = method("clip-es", background=backgrounds().flip(0)).localize(pictures(), LABELS).maps
    torch.testing.assert_close(turned, found)
    alone = ClipMaps(clip(), texts()[LABELS[:1]], kind="clip-es", background=backgrounds()).localize(pictures(1)).maps
    torch.testing.assert_close(alone, found[:1])
    against_all = method("clip-es", rivals="all").localize(pictures(), LABELS).maps
    assert (found - against_all).abs().amax((1, 2)).min() > 1e-3


def test_the_other_classes_as_rivals_are_the_other_classes_as_backgrounds():
    found = ClipMaps(clip(), texts(), kind="clip-es", rivals="all").localize(pictures(1), torch.tensor([2])).maps
    rest = texts()[[0, 1, 3, 4]]
    expected = ClipMaps(clip(), texts()[2:3], kind="clip-es", background=rest).localize(pictures(1)).maps
    torch.testing.assert_close(found, expected)


def test_affinity_of_two_by_hand():
    """Columns sum to 2 and 4, then rows to 3/4 and 5/4; the limit of [[1,1],[1,3]] has the odds sqrt 3."""
    attention = torch.tensor([[[1.0, 1.0], [1.0, 3.0]]], dtype=torch.float64)
    share = 3**0.5 / (1 + 3**0.5)
    expected = torch.tensor([[[share, 1 - share], [1 - share, share]]], dtype=torch.float64)
    found = affinity(attention)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert found.equal(found.transpose(1, 2))


def test_affinity_is_symmetric_nearly_doubly_stochastic_and_finite():
    attention = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0))
    found = affinity(attention)
    assert found.equal(found.transpose(1, 2))
    torch.testing.assert_close(found.sum(1), torch.ones(2, 9), atol=3e-3, rtol=0)
    assert affinity(torch.zeros(1, 4, 4)).equal(torch.zeros(1, 4, 4))
    torch.testing.assert_close(affinity(7 * attention), found)


SWAP = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])[None] / 2  # 0 and 1 share, 2 and 3


def test_refinement_by_hand():
    """Place 0 lies in the box and spreads to 1; place 2 lies below .4 and spreads to nobody."""
    refined = refine(torch.tensor([[[1.0, 0.0], [0.3, 0.0]]]), SWAP)
    torch.testing.assert_close(refined, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))


def test_refinement_inside_one_box_by_hand():
    """Places 0 and 3 touch at a corner, so that one box holds all four.

    Places 0 and 1 share 1 and 0, places 2 and 3 share .3 and .8: 1/2, 1/2, .55, .55.
    """
    refined = refine(torch.tensor([[[1.0, 0.0], [0.3, 0.8]]]), SWAP)
    torch.testing.assert_close(refined, torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))


def test_attention_is_applied_twice():
    """Places 0 and 1 look at each other alone: twice is the identity."""
    crossed = torch.tensor([[[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]])
    cam = torch.tensor([[[1.0, 0.0], [0.5, 0.75]]])
    torch.testing.assert_close(refine(cam, crossed), cam)


def test_boxes_of_all_pieces_reach_the_border():
    cam = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.3, 0.7]])
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert box_mask(cam[None])[0].equal(expected)
    assert not box_mask(torch.zeros(2, 3, 3)).any()


def test_boxes_are_opencvs():
    cams = maps.normalize(torch.rand(40, 6, 7, generator=torch.Generator().manual_seed(0)) ** 2)
    assert box_mask(cams).equal(torch.stack([slow_boxes(cam) for cam in cams]))


def test_a_map_without_evidence_is_zero():
    assert not refine(torch.zeros(1, 2, 2), SWAP).any()


# --- pictures


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_pictures_one_by_one(kind):
    localizer = method(kind)
    together = localizer.localize(pictures(), LABELS)
    for i in range(3):
        alone = localizer.localize(pictures()[i : i + 1], LABELS[i : i + 1])
        torch.testing.assert_close(together.maps[i : i + 1], alone.maps)
        torch.testing.assert_close(together.logits[i : i + 1], alone.logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 16), (64, 40)])
def test_another_size_is_the_model_that_open_clip_resizes(kind, size):
    found = method(kind).localize(pictures(2, *size))
    expected = method(kind, resized(clip(), size)).localize(pictures(2, *size))
    torch.testing.assert_close(found.maps, expected.maps)
    torch.testing.assert_close(found.logits, expected.logits)


def test_positions_of_the_models_own_grid_are_untouched():
    visual = clip().visual
    assert positions(visual, (4, 4)) is visual.positional_embedding
    assert positions(visual, (2, 6))[0].equal(visual.positional_embedding[0])


@pytest.mark.parametrize("size", [(32, 36), (4, 32), (0, 0)])
def test_patches_must_fill_the_picture(size):
    with pytest.raises(RecipeError, match=f"patches of 8 x 8 pixels do not fill pictures of {size[0]} x {size[1]}"):
        method().localize(pictures(1, *size))


def test_pictures_are_normalised_as_the_model_says():
    model, one = clip(), torch.full((1, 3, 8, 8), 0.25)
    colours = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    usual = method(model=model).normalize(one)[0, :, 0, 0].tolist()
    assert usual == pytest.approx([(0.25 - m) / s for m, s in zip(*colours, strict=True)])
    model.visual.image_mean, model.visual.image_std = (0.5, 0.25, 0), (0.5, 0.5, 0.125)
    assert method(model=model).normalize(one)[0, :, 0, 0].tolist() == [-0.5, 0, 2]


# --- the method


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_localizing_leaves_nothing_behind(kind, mode):
    localizer = method(kind)
    expected = localizer.localize(pictures(), LABELS)
    with mode():
        found = localizer.train().localize(pictures(), LABELS.clone())
    assert found.maps.equal(expected.maps) and not found.maps.requires_grad and not found.logits.requires_grad
    model = localizer.model.module
    assert not model.training and all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_nothing_is_trained():
    localizer = method()
    with pytest.raises(RecipeError, match="nothing to train"):
        localizer({"image": pictures(), "label": LABELS})
    with pytest.raises(RecipeError, match="ClipMaps has no parameter to train; set epochs to 0"):
        make_optimizer(localizer, SimpleNamespace(optimizer=SimpleNamespace(lr=1), head_rate=1))
    assert set(localizer.state_dict()) == {"texts", "background"}


def test_the_length_of_a_text_says_nothing():
    found, longer = (ClipMaps(clip(), scale * texts()).localize(pictures()) for scale in (1, 7))
    torch.testing.assert_close(found.logits, longer.logits)
    torch.testing.assert_close(found.maps, longer.maps)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    model = clip().float()
    expected = ClipMaps(model, texts().float(), kind=kind, background=backgrounds().float()).localize(
        pictures(), LABELS
    )
    rough = open_clip.CLIP(32, VISION, TEXT, cast_dtype=torch.bfloat16)
    rough.load_state_dict(model.state_dict())
    open_clip.model.convert_weights_to_lp(rough, torch.bfloat16)
    localizer = ClipMaps(rough, texts().bfloat16(), kind=kind, background=backgrounds().bfloat16())
    found = localizer.localize(pictures(), LABELS)
    assert found.maps.dtype == found.logits.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([found.maps.flatten(), expected.maps.flatten()]))[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize(
    "model",
    [
        nn.Module,
        lambda: open_clip.CLIP(32, {"layers": (1, 1, 1, 1), "width": 16, "image_size": 32}, TEXT),
        lambda: open_clip.CLIP(32, {**VISION, "attentional_pool": True}, TEXT),
        lambda: open_clip.CLIP(32, {**VISION, "qk_norm": True}, TEXT),
    ],
    ids=["none", "resnet", "pooler", "other attention"],
)
def test_other_towers_are_refused(model):
    with pytest.raises(RecipeError, match="is no vision transformer of open_clip with torch's own attention"):
        ClipMaps(model(), texts())


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.ones(5, 31), {}, r"texts must be embeddings of this model, Float\[n,32\], not \[5, 31\]"),
        (torch.ones(32), {}, r"texts must be .* not \[32\]"),
        (torch.ones(5, 32), {"background": torch.ones(2, 64)}, r"background must be .* not \[2, 64\]"),
        (torch.ones(0, 32), {}, "the text of at least one class"),
        (torch.ones(5, 32), {"kind": "sclp"}, "no kind 'sclp': choose one of vanilla, sclip, naclip, clip-es"),
        (torch.ones(5, 32), {"rivals": "none"}, "no rivals 'none': choose one of background, all"),
        (torch.ones(5, 32), {"gaussian_std": 0}, "must be above 0"),
        (torch.ones(5, 32), {"gaussian_std": math.nan}, "must be above 0"),
        (torch.ones(5, 32), {"kind": "clip-es"}, "give background texts"),
        (torch.ones(1, 32), {"kind": "clip-es", "rivals": "all"}, "give background texts"),
    ],
)
def test_mistakes_are_named_in_one_sentence(given, options, message):
    with pytest.raises(RecipeError, match=message) as caught:
        ClipMaps(clip(), given, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [[5, 0, 0], [0, -1, 0]])
@pytest.mark.parametrize("kind", ["vanilla", "clip-es"])
def test_labels_must_be_classes(kind, labels):
    with pytest.raises(RecipeError, match="texts of classes 0 to 4, not of"):
        method(kind).localize(pictures(), torch.tensor(labels))


def test_clip_es_has_no_maps_of_all_classes():
    with pytest.raises(RecipeError, match="one class at a time"):
        method("clip-es").class_maps(pictures())


def test_attention_knows_no_class():
    localizer = method("attention")
    assert not localizer.uses_labels and method("vanilla").uses_labels
    assert torch.equal(localizer.localize(pictures()).maps, localizer.localize(pictures(), LABELS).maps)
    with pytest.raises(RecipeError, match="one map a picture"):
        localizer.class_maps(pictures())


def test_the_module_needs_no_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    spec = importlib.util.spec_from_file_location("without_open_clip", clip_maps.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.ClipMaps is not ClipMaps


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("ViT-B-16", 14), ("ViT-B-32", 7)])
def test_real_architectures_run(name, side):
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    names, things = torch.randn(5, 512), torch.randn(3, 512)
    for kind in KINDS:
        found = ClipMaps(model, names, kind=kind, background=things).localize(pictures(1, 224, 224))
        assert found.maps.shape == (1, side, side) and found.maps.isfinite().all() and found.maps.std() > 0
    wide = ClipMaps(model, names, kind="naclip").localize(pictures(1, 224, 256))
    assert wide.maps.shape == (1, side, side * 8 // 7)
