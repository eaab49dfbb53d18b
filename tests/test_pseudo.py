"""Pseudo supervision: principal components by hand, boxes and seeds from drawn maps, boxes made wrong on purpose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.decomposition import PCA

from wsol_lib.backbones import create
from wsol_lib.data import load
from wsol_lib.pseudo import SIDE, Moments, boxes_from_maps, ddt_maps, disturb, otsu_seeds, project

SQUARE = torch.tensor([[SIDE, SIDE]])


def random_features(n=5, channels=6, height=3, width=4, seed=0):
    """Non-negative, with one channel that varies most."""
    x = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)).double()
    x[:, 2] *= 4
    return x


def rotation(size, seed=0):
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())
    return q


# --- DDT


def test_two_pixels_by_hand():
    """Descriptors (1, 2) and (4, 6): mean (2.5, 4), direction (3, 4) / 5, half the distance 5 to each side."""
    features = torch.tensor([[[[1.0, 4.0]], [[2.0, 6.0]]]])
    mean, direction = Moments.of(features).component()
    assert mean.tolist() == [2.5, 4] and direction.tolist() == pytest.approx([0.6, 0.8])
    assert ddt_maps(features).flatten().tolist() == pytest.approx([-2.5, 2.5])


def test_the_map_rises_where_the_network_responds():
    """An object that all channels answer to: positive inside, for whatever order and scale of the channels."""
    features = torch.zeros(3, 4, 6, 6)
    features[:, :, 2:4, 2:4] = torch.tensor([1.0, 3, 2, 0.5])[:, None, None]
    maps = ddt_maps(features)
    assert (maps[:, 2:4, 2:4] > 0).all() and (maps > 0).sum() == 3 * 4
    silent = 5 - features  # the same, seen by channels that fall silent on it
    assert (ddt_maps(silent)[:, 2:4, 2:4] < 0).all()


def test_equal_to_a_pca_but_for_the_sign():
    features = random_features()
    flat = features.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    expected = PCA(1).fit_transform(flat)[:, 0]
    found = ddt_maps(features).flatten().numpy()
    np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-9)
    assert found @ flat.mean(1) > 0  # the sign: it rises with the mean activation


def test_a_rotation_and_a_shift_of_all_descriptors_change_nothing_but_the_sign():
    features, turn = random_features(), rotation(6)
    turned = torch.einsum("dc,nchw->ndhw", turn, features) + torch.arange(6.0).double()[:, None, None]
    maps, other = ddt_maps(features), ddt_maps(turned)
    torch.testing.assert_close(other * (other * maps).sum().sign(), maps, atol=1e-9, rtol=0)
    assert maps.mean().abs() < 1e-12
    torch.testing.assert_close(ddt_maps(features + 3), maps, atol=1e-9, rtol=0)


def test_the_sign_turns_with_the_data():
    features = random_features()
    mean, direction = Moments.of(features).component()
    other_mean, other = Moments.of(-features).component()
    torch.testing.assert_close(other_mean, -mean)
    torch.testing.assert_close(other, direction)  # so that the map of the negated descriptors is the negated map
    torch.testing.assert_close(ddt_maps(-features), -ddt_maps(features))


def test_moments_of_parts_add_up():
    features = random_features(n=7)
    whole, parts = Moments.of(features), Moments.of(features[:2]) + Moments.of(features[2:])
    assert whole.count == parts.count == 7 * 12
    torch.testing.assert_close(whole.second, parts.second)
    for one, other in zip(whole.component(), parts.component(), strict=True):
        torch.testing.assert_close(one, other)


def test_moments_are_exact_for_large_single_precision_features():
    features = random_features().float() + 1000  # the covariance is a millionth of the second moment
    torch.testing.assert_close(ddt_maps(features), ddt_maps(features - 1000), atol=5e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
def test_equal_descriptors_have_no_direction(value):
    features = torch.full((2, 5, 3, 3), value)
    assert Moments.of(features).component()[1].tolist() == [0] * 5
    assert torch.equal(ddt_maps(features), torch.zeros(2, 3, 3))


def test_each_picture_may_have_its_own_component():
    features = random_features(n=2)
    mean, direction = torch.rand(2, 6), torch.rand(2, 6)
    both = project(features, mean, direction)
    for i in range(2):
        torch.testing.assert_close(both[i], project(features[i : i + 1], mean[i], direction[i])[0])


# --- boxes from maps


def drawn(*windows, size=SIDE, low=0.0):
    """A map with value v in each (x0, y0, x1, y1, v)."""
    score_map = torch.full((1, size, size), low)
    for x0, y0, x1, y1, value in windows:
        score_map[0, y0:y1, x0:x1] = value
    return score_map


@pytest.mark.parametrize("threshold", ["otsu", "zero", 0.5])
def test_a_drawn_box_is_found_in_pixels_of_the_original(threshold):
    score_map = drawn((28, 56, 112, 168, 2.0), low=-1.0)
    (box,) = boxes_from_maps(score_map, torch.tensor([[448, 112]]), threshold)
    assert box.tolist() == [[56, 28, 224, 84]]


def test_the_largest_piece_counts_pixels_and_corners_touch():
    square = (10, 10, 40, 40, 1.0)  # 900 pixels
    thin = [(100, 100, 200, 104, 1.0), (100, 100, 104, 200, 1.0)]  # 784 in a larger box
    assert boxes_from_maps(drawn(square, *thin), SQUARE)[0].tolist() == [[10, 10, 40, 40]]
    ring = [(100, 100, 160, 160, 1.0), (102, 102, 158, 158, 0.0)]  # 464 pixels around a wide hole
    assert boxes_from_maps(drawn(square, *ring), SQUARE)[0].tolist() == [[10, 10, 40, 40]]
    diagonal = drawn((10, 10, 40, 40, 1.0), (40, 40, 60, 60, 1.0))
    assert boxes_from_maps(diagonal, SQUARE)[0].tolist() == [[10, 10, 60, 60]]


def test_thresholds_differ_as_they_say():
    steps = drawn((0, 0, 100, 100, 1.0), (0, 0, 60, 60, 3.0), low=-1.0)  # min-max: 0, .5, 1
    assert boxes_from_maps(steps, SQUARE, "zero")[0].tolist() == [[0, 0, 100, 100]]
    assert boxes_from_maps(steps, SQUARE, 0.49)[0].tolist() == [[0, 0, 100, 100]]
    assert boxes_from_maps(steps, SQUARE, 0.5)[0].tolist() == [[0, 0, 60, 60]]  # above, not at
    assert boxes_from_maps(steps + 5, SQUARE, "zero")[0].tolist() == [[0, 0, SIDE, SIDE]]
    assert len(boxes_from_maps(steps - 5, SQUARE, "zero")[0]) == 0


@pytest.mark.parametrize("threshold", ["otsu", "zero", 0.0, 0.5])
@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0, float("nan"), float("inf")])
def test_a_map_that_says_nothing_gives_no_box(threshold, value):
    maps = torch.stack([drawn((10, 10, 40, 40, 1.0), low=-1.0)[0], torch.full((SIDE, SIDE), value)])
    first, second = boxes_from_maps(maps, SQUARE.repeat(2, 1), threshold)
    assert first.shape == (1, 4) and second.shape == (0, 4)
    assert second.dtype == first.dtype == torch.float32


@pytest.mark.parametrize("threshold", ["otsu", "zero", 0.0, 0.5])
@pytest.mark.parametrize("size", [1, 7, 14, 31])
def test_a_constant_map_stays_silent_through_the_resize(threshold, size):
    """The weights of the bicubic kernel add up to 1 but for rounding: enough for a min-max to blow up."""
    maps = torch.tensor([0.1, 1 / 3, 1.0, 1e4])[:, None, None].expand(4, size, size)
    assert [len(box) for box in boxes_from_maps(maps, SQUARE.repeat(4, 1), threshold)] == [0] * 4


def test_one_nan_is_enough_to_say_nothing():
    score_map = torch.rand(1, 7, 7)
    score_map[0, 3, 3] = torch.nan
    assert [len(boxes_from_maps(score_map, SQUARE, threshold)[0]) for threshold in ("otsu", "zero", 0.2)] == [0, 0, 0]


@pytest.mark.parametrize("threshold", ["Otsu", 1.0, -0.1, None])
def test_other_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match=r'a threshold is "otsu", "zero" or a number'):
        boxes_from_maps(torch.rand(1, 7, 7), SQUARE, threshold)


def test_a_size_is_wanted_for_each_map():
    with pytest.raises(ValueError):
        boxes_from_maps(torch.rand(2, 7, 7), SQUARE)


def slow_otsu(scaled):
    """What lies above Otsu's threshold in 8 bits, by its definition: the least variance within the two classes."""
    levels = np.floor(255 * scaled)
    spread = [np.inf] * 255
    for t in range(255):
        low, high = levels[levels <= t], levels[levels > t]
        if len(low) and len(high):
            spread[t] = len(low) * low.var() + len(high) * high.var()
    return levels > int(np.argmin(spread))


def slow_box(score_map, threshold):
    """Independent: OpenCV's resize, the histogram's Otsu by its definition, scipy's labels."""
    large = cv2.resize(score_map.numpy(), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    scaled = (large - large.min()) / (large.max() - large.min())
    shown = slow_otsu(scaled) if threshold == "otsu" else large > 0
    labels, n = ndimage.label(shown, np.ones((3, 3)))
    largest = max(range(1, n + 1), key=lambda i: (labels == i).sum())
    ys, xs = np.nonzero(labels == largest)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from(["otsu", "zero"]))
def test_equal_to_a_slow_reference(seed, threshold):
    score_map = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).double()
    (box,) = boxes_from_maps(score_map[None], SQUARE, threshold)
    assert box[0].tolist() == slow_box(score_map, threshold)


def test_scale_and_offset_change_nothing_but_for_zero():
    maps = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    sizes = SQUARE.repeat(3, 1)
    for threshold in ("otsu", 0.4):
        for a, b in zip(
            boxes_from_maps(maps, sizes, threshold), boxes_from_maps(4 * maps + 8, sizes, threshold), strict=True
        ):
            assert (a - b).abs().max() <= 1  # a pixel that rounds to the other side of an 8-bit level
    zero = [boxes_from_maps(m, sizes, "zero") for m in (maps, 4 * maps)]
    assert all(torch.equal(a, b) for a, b in zip(*zero, strict=True))


# --- seeds from maps

HILL = torch.tensor([[[0.0, 0.1, 0.2, 0.0], [0.1, 0.9, 0.8, 0.1], [0.3, 0.7, 1.0, 0.2]]])  # .7 and more is above Otsu's


def many(cam, draws=300, **options):
    """How often each place is foreground and background in so many draws: two Float[B,h,w] of shares."""
    generator = torch.Generator().manual_seed(0)
    seeds = torch.stack([otsu_seeds(cam, generator=generator, **options) for _ in range(draws)])
    return (seeds == 1).double().mean(0), (seeds == 0).double().mean(0)


def test_seeds_of_a_drawn_hill():
    """All four above the threshold; of the rest, the third that is lowest: two zeros, and the three that tie at .1."""
    foreground, background = many(HILL, count=4, low=1 / 3)
    assert foreground.tolist() == [[[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]]
    assert (background > 0).tolist() == (HILL <= 0.1).tolist()
    assert background[HILL <= 0.1].tolist() == pytest.approx([0.8] * 5, abs=0.08)
    foreground, background = many(HILL, count=4, top=0.25, low=0.1)
    assert background[HILL == 0].tolist() == [1, 1], "two are lowest, so there are two of each kind"
    assert foreground[HILL >= 0.8].tolist() == pytest.approx(
        [2 / 3] * 3, abs=0.08
    ) and foreground.sum() == pytest.approx(2)


def test_a_threshold_of_one_s_own_takes_the_place_of_otsu_s():
    """Above .75 lie .8, .9 and 1; without `low` to hold it back all else is background, .7 too."""
    foreground, background = many(HILL, count=3, low=1.0, threshold=0.75)
    assert foreground.tolist() == (HILL > 0.75).double().tolist()
    assert (background > 0).tolist() == (HILL <= 0.75).tolist()
    raised = 3 * HILL + 5
    assert torch.equal(many(raised, count=3, low=1.0, threshold=0.75)[0], foreground), "of the range of the map"


@pytest.mark.parametrize("wrong", [1.0, -0.1, "zero", float("nan"), None])
def test_a_threshold_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="seeds need a threshold"):
        otsu_seeds(torch.rand(1, 5, 5), threshold=wrong)


def test_as_many_of_each_kind_and_never_more_than_asked():
    maps = torch.rand(20, 7, 7, generator=torch.Generator().manual_seed(0))
    for count in (1, 3, 8):
        seeds = otsu_seeds(maps, count, low=0.2).flatten(1)
        assert (seeds == 1).sum(1).tolist() == (seeds == 0).sum(1).tolist() == [count] * 20
    few = otsu_seeds(maps, 40, top=0.1, low=0.2).flatten(1)
    assert (few == 1).sum(1).tolist() == (few == 0).sum(1).tolist() == [5] * 20
    assert few.dtype == torch.int64 and otsu_seeds(maps).shape == maps.shape


def slow_candidates(score_map, top, low):
    """Foreground and background places by sorting, for maps without ties."""
    scaled = (score_map - score_map.min()) / (score_map.max() - score_map.min())
    shown, order = slow_otsu(scaled).ravel(), scaled.ravel().argsort()
    high, deep = round(top * scaled.size), round(low * scaled.size)
    return {i for i in order[-high:] if shown[i]}, {i for i in order[:deep] if not shown[i]}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), top=st.sampled_from([0.1, 0.3, 1.0]), low=st.sampled_from([0.1, 0.5, 1.0]))
def test_seeds_are_the_candidates_of_a_slow_reference(seed, top, low):
    score_map = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).double()
    expected = slow_candidates(score_map.numpy(), top, low)
    n = min(map(len, expected))
    for found, candidates in zip(many(score_map[None], 60, count=30, top=top, low=low), expected, strict=True):
        drawn = set(found.flatten().nonzero().flatten().tolist())
        assert drawn <= candidates and found.sum().item() == pytest.approx(n)
        assert drawn == candidates or n < len(candidates)


def test_where_half_a_map_is_0_no_corner_is_preferred():
    cam = torch.zeros(1, 10, 10)
    cam[0, 4:6, 4:6] = 1.0
    foreground, background = many(cam, draws=2000, count=4)
    assert foreground.sum() == foreground[0, 4:6, 4:6].sum() == 4
    assert background[cam == 0].numpy() == pytest.approx(4 / 96, abs=0.02)


def test_the_same_generator_draws_the_same_seeds():
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))
    first, again, other = (otsu_seeds(maps, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    generator = torch.Generator().manual_seed(0)
    otsu_seeds(maps, 5, generator=generator)
    used = generator.get_state()
    generator.manual_seed(0)
    otsu_seeds(torch.zeros(3, 7, 7), 1, generator=generator)
    assert torch.equal(generator.get_state(), used), "as many numbers, whatever the maps"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        globally = otsu_seeds(maps, 5)
    assert torch.equal(globally, otsu_seeds(maps, 5, generator=torch.Generator().manual_seed(5)))


def test_a_picture_does_not_see_the_others():
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))
    both = maps.clone()
    both[1] = torch.nan
    a, b = (otsu_seeds(m, 5, generator=torch.Generator().manual_seed(0)) for m in (maps, both))
    assert torch.equal(a[[0, 2]], b[[0, 2]]) and (b[1] == -1).all()


def test_scale_and_offset_of_a_map_change_no_seed():
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1)).double()
    drawn_from = [otsu_seeds(m, 5, generator=torch.Generator().manual_seed(0)) for m in (maps, 4 * maps, maps - 2)]
    assert torch.equal(drawn_from[0], drawn_from[1]) and torch.equal(drawn_from[0], drawn_from[2])
    half = maps.half()
    assert torch.equal(*(otsu_seeds(m, 5, generator=torch.Generator().manual_seed(0)) for m in (half, half.double())))


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.3, float("nan"), float("inf")])
def test_a_map_that_says_nothing_has_no_seeds(value):
    assert (otsu_seeds(torch.full((2, 5, 5), value), 3) == -1).all()
    spoiled = torch.rand(1, 5, 5)
    spoiled[0, 2, 2] = torch.nan
    assert (otsu_seeds(spoiled, 3) == -1).all() and (otsu_seeds(torch.rand(1, 1, 1), 1) == -1).all()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"top": 0.0}, {"top": 1.1}, {"low": 0.0}, {"low": 2.0}])
def test_impossible_seeds_are_refused(wrong):
    with pytest.raises(ValueError, match=r"seeds need count >= 1 and shares in \(0,1\]"):
        otsu_seeds(torch.rand(1, 5, 5), **wrong)


# --- boxes made wrong on purpose


def wrong_at(noise, n=400):
    box = torch.tensor([10.0, 20, 40, 50])
    found = [disturb(box, (100, 80), noise, np.random.default_rng([0, i])) for i in range(n)]
    return torch.stack(found), torch.tensor([not torch.equal(b, box) for b in found])


def test_the_share_of_wrong_boxes_is_the_noise():
    assert wrong_at(0.0)[1].sum() == 0 and wrong_at(1.0)[1].all()
    assert wrong_at(0.3)[1].float().mean() == pytest.approx(0.3, abs=0.07)


def test_wrong_boxes_keep_their_size_and_lie_anywhere_inside():
    boxes, _ = wrong_at(1.0)
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], torch.full((400, 2), 30.0))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([100, 80])).all()
    low, high = boxes[:, :2].amin(0), boxes[:, :2].amax(0)
    assert (low < 3).all() and (high > torch.tensor([67, 47])).all()
    assert boxes[:, 0].mean() == pytest.approx(35, abs=4) and boxes[:, 1].mean() == pytest.approx(25, abs=4)


def test_more_noise_adds_wrong_boxes_and_keeps_the_others():
    some, few = wrong_at(0.2)
    more, many = wrong_at(0.6)
    assert (many | ~few).all() and torch.equal(more[few], some[few])


def test_a_box_larger_than_the_picture_stays_at_the_corner():
    box = disturb(torch.tensor([0.0, 0, 120, 50]), (100, 80), 1.0, np.random.default_rng(0))
    assert box[0] == 0 and box[2] == 120


def test_noise_is_a_share():
    with pytest.raises(ValueError, match="a share of boxes"):
        disturb(torch.zeros(4), (1, 1), 1.5, np.random.default_rng(0))


# --- real pictures


@pytest.mark.slow
@pytest.mark.needs("cub")
def test_on_birds_the_map_rises_inside_the_box():
    """Of 20 pictures of one bird, with the label alone; the boxes are looked at here, and nowhere before."""
    data = load("cub-50", "train", size=224, per_class=20, supervision="oracle").subset(range(20))
    backbone = create(weights="lite0-pip").eval()
    with torch.no_grad():
        maps = ddt_maps(backbone(torch.stack([data[i]["image"] for i in range(20)]))["last"])
    gains, hits = [], []
    for i, box in enumerate(boxes_from_maps(maps, data.image_sizes)):
        truth = data.boxes(i)[0]
        frame = data.frame(i).boxes(truth[None], data.image_size(i))[0] / 32
        x0, y0, x1, y1 = frame.round().int().clamp(0, 7).tolist()
        gains.append((maps[i, y0:y1, x0:x1].mean() - maps[i].mean()).item())
        centre = (box[0, :2] + box[0, 2:]) / 2
        hits.append(bool((centre >= truth[:2]).all() and (centre <= truth[2:]).all()))
    assert np.mean(np.array(gains) > 0) >= 0.95 and np.mean(hits) >= 0.9
