"""Maps: hand-worked values, slow loops as an independent reference, invariances, OpenCV's bicubic."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol_lib import maps

A = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[0.0, 1.0], [2.0, 0.0]]]])  # [1,2,2,2]
G = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]]])
FAMILY = [maps.grad_cam, maps.grad_cam_pp, maps.xgrad_cam, maps.layer_cam, maps.hires_cam]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (maps.grad_cam, [[1.0, 1.5], [0.0, 1.0]]),  # weights 1 and -1/2
        (maps.grad_cam_pp, [[2 / 3, 4 / 3], [0.0, 2 / 3]]),  # weights 4 * 1 / (2 + 4) and 0
        (maps.xgrad_cam, [[1.0, 2.0], [0.0, 1.0]]),  # weights 4/4 and 0/3
        (maps.layer_cam, [[1.0, 2.0], [0.0, 1.0]]),
        (maps.hires_cam, [[1.0, 2.0], [0.0, 1.0]]),
    ],
)
def test_hand_worked_values(function, expected):
    torch.testing.assert_close(function(A, G)[0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_hires_and_layer_cam_part_where_a_gradient_is_negative_on_an_activation():
    activations = torch.tensor([[[[1.0, 1.0]], [[3.0, 0.5]]]])  # [1,2,1,2]
    gradients = torch.tensor([[[[1.0, 1.0]], [[-1.0, -1.0]]]])
    assert maps.layer_cam(activations, gradients).tolist() == [[[1.0, 1.0]]]
    assert maps.hires_cam(activations, gradients).tolist() == [[[0.0, 0.5]]]
    assert maps.grad_cam(activations, gradients).tolist() == [[[0.0, 0.5]]]


def test_cam_takes_the_row_of_each_label():
    features = torch.stack([A[0], 10 * A[0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, -2.0], [1.0, 1.0]])
    expected = torch.tensor([[[0.0, -2.0], [-4.0, 0.0]], [[10.0, 30.0], [20.0, 10.0]]])
    torch.testing.assert_close(maps.cam(features, weight, torch.tensor([1, 2])), expected)


def slow(name, a, g, eps=1e-6):
    """One image, loops only: a, g [C,h,w] -> [h,w]."""
    channels, height, width = a.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    out = np.zeros((height, width))
    for k in range(channels):
        total, weight = sum(a[k][p] for p in places), 0.0
        if name == "grad_cam":
            weight = sum(g[k][p] for p in places) / len(places)
        elif name == "xgrad_cam":
            weight = sum(a[k][p] * g[k][p] for p in places) / (total + 1e-7)
        elif name == "grad_cam_pp":
            alphas = [g[k][p] ** 2 / (2 * g[k][p] ** 2 + total * g[k][p] ** 3 + eps) if g[k][p] else 0 for p in places]
            weight = sum(alpha * max(g[k][p], 0) for alpha, p in zip(alphas, places, strict=True))
        for p in places:
            local = {"layer_cam": max(g[k][p], 0), "hires_cam": g[k][p]}
            out[p] += a[k][p] * local.get(name, weight)
    return np.maximum(out, 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_equal_to_slow_loops(seed, channels, height, width):
    draw = torch.Generator().manual_seed(seed)
    a = torch.rand(2, channels, height, width, generator=draw, dtype=torch.float64)
    g = torch.randn(2, channels, height, width, generator=draw, dtype=torch.float64)
    g[g.abs() < 0.3] = 0
    for function in FAMILY:
        expected = np.stack([slow(function.__name__, a[b].numpy(), g[b].numpy()) for b in range(2)])
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(function(a, g).numpy() - expected).max() < 1e-9 * scale, function.__name__


@pytest.mark.parametrize("function", FAMILY)
def test_maps_of_a_batch_are_those_of_its_images(function):
    draw = torch.Generator().manual_seed(1)
    a, g = torch.rand(3, 5, 4, 6, generator=draw), torch.randn(3, 5, 4, 6, generator=draw)
    alone = torch.cat([function(a[i : i + 1], g[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(function(a, g), alone)
    assert function(a, g).shape == (3, 4, 6)
    assert (function(a, g) >= 0).all()


@pytest.mark.parametrize("function", FAMILY)
def test_zero_gradients_and_silent_channels_stay_finite(function):
    a, g = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    assert (function(a, torch.zeros_like(a)) == 0).all()
    assert (function(torch.zeros_like(a), g) == 0).all()


def test_grad_cam_pp_eps_matters_for_small_gradients_only():
    a = torch.rand(1, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    large, small = torch.ones(1, 4, 7, 7), torch.full((1, 4, 7, 7), 1e-4)
    torch.testing.assert_close(maps.grad_cam_pp(a, large), maps.grad_cam_pp(a, large, eps=0.0), rtol=1e-5, atol=0)
    ratio = maps.grad_cam_pp(a, small).sum() / maps.grad_cam_pp(a, small, eps=0.0).sum()
    assert ratio < 0.1


def test_gradients_of_a_linear_head_are_its_weights_over_the_area():
    draw = torch.Generator().manual_seed(0)
    activations = torch.rand(4, 3, 5, 7, generator=draw).requires_grad_()
    weight = torch.randn(6, 3, generator=draw).requires_grad_()
    labels = torch.tensor([0, 5, 2, 2])
    logits = activations.mean((2, 3)) @ weight.T
    gradient = maps.gradients(logits[torch.arange(4), labels], activations)
    torch.testing.assert_close(gradient, (weight[labels] / 35)[:, :, None, None].expand(4, 3, 5, 7).detach())
    assert activations.grad is None and weight.grad is None and not gradient.requires_grad


def test_gradients_of_scores_that_do_not_depend_on_the_layer_are_refused():
    layer = torch.rand(2, 3, 4, 4, requires_grad=True)
    other = torch.rand(2, 3, 4, 4, requires_grad=True)
    for scores, activations in [
        (other.mean((1, 2, 3)), layer),
        (layer.detach().mean((1, 2, 3)), layer),
        (layer.mean((1, 2, 3)), layer.detach()),
    ]:
        with pytest.raises(ValueError, match="do not depend on these activations"):
            maps.gradients(scores, activations)


def test_score_cam_weighs_channels_by_what_they_show():
    image = torch.ones(1, 3, 4, 4)
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2], right[:, 2:] = 1, 1
    activations = torch.stack([left, right, torch.full((4, 4), 0.5)])[None]  # the last is constant: it hides all

    def score(pictures):  # the class is a bright left half; class 0 is nothing
        return torch.stack([torch.zeros(len(pictures)), pictures[:, :, :, :2].sum((1, 2, 3)) / 24], dim=1)

    weights = torch.tensor([1.0, 0.0, 0.0]).softmax(0)  # logits of the three masked pictures
    expected = torch.einsum("chw,c->hw", activations[0], weights)[None]
    for chunk in (1, 2, 64):
        torch.testing.assert_close(maps.score_cam(activations, score, image, torch.tensor([1]), chunk), expected)


def test_score_cam_gives_each_image_its_own_label():
    draw = torch.Generator().manual_seed(0)
    activations, images = torch.rand(3, 4, 3, 3, generator=draw), torch.rand(3, 3, 9, 9, generator=draw)
    mix = torch.randn(3 * 81, 5, generator=draw)
    labels = torch.tensor([4, 0, 2])
    together = maps.score_cam(activations, lambda x: x.flatten(1) @ mix, images, labels, 3)
    for i in range(3):
        alone = maps.score_cam(
            activations[i : i + 1], lambda x: x.flatten(1) @ mix, images[i : i + 1], labels[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone)


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_normalize_fills_the_unit_range_and_forgets_scale_and_shift(seed, scale, shift):
    score_maps = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    normal = maps.normalize(score_maps)
    assert (normal.amin((1, 2)) == 0).all() and (normal.amax((1, 2)) == 1).all()
    torch.testing.assert_close(maps.normalize(score_maps * scale + shift), normal, atol=1e-9, rtol=0)


def test_normalize_blanks_only_the_unusable_maps():
    score_maps = torch.rand(5, 3, 3)
    score_maps[1] = 0.7
    score_maps[2, 1, 1] = torch.nan
    score_maps[3, 0, 0] = torch.inf
    normal = maps.normalize(score_maps)
    assert (normal[1:4] == 0).all()
    assert (normal[[0, 4]].amax((1, 2)) == 1).all()


@pytest.mark.parametrize(("mode", "theirs"), [("bicubic", cv2.INTER_CUBIC), ("bilinear", cv2.INTER_LINEAR)])
@pytest.mark.parametrize("size", [(224, 224), (97, 160), (5, 9)])
def test_resize_is_opencv_s(mode, theirs, size):
    score_maps = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = maps.resize(score_maps, size, mode).numpy()
    expected = np.stack([cv2.resize(m, size[::-1], interpolation=theirs) for m in score_maps.numpy()])
    assert np.abs(ours - expected).max() < 5e-6  # OpenCV keeps its cubic coefficients in float32


def test_resize_to_a_square_and_by_nearest():
    score_maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert maps.resize(score_maps, 4, "nearest-exact")[0].tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    assert maps.resize(score_maps, 4).shape == (1, 4, 4)
