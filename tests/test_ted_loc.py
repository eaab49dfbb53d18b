"""TeD-Loc's equations: by hand, place by place, who gets a gradient, what leaves them alone, two processes as one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distributed import together

from wsol_lib import distributed
from wsol_lib.methods.ted_loc import distillation_loss, expected_embedding, patch_loss
from wsol_lib.pseudo import otsu_seeds
from wsol_lib.text import orthogonal_anchors

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
