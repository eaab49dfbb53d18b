"""Views: what is random depends on (seed, epoch, index) only, and what moves moves with the picture."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from wsol_lib.data import collate
from wsol_lib.data.dataset import WsolDataset
from wsol_lib.data.views import (
    Augmented,
    Choices,
    DisturbedBoxes,
    PseudoBoxes,
    PseudoSupervision,
    Stream,
    Triplets,
    generator,
    largest,
    random_part,
)
from wsol_lib.engine import View, _wrapped
from wsol_lib.pseudo import boxes_from_maps
from wsol_lib.types import SupervisionError


class Ramp(WsolDataset):
    """Pictures whose red and green say where a pixel was (x, y) and whose blue says which picture it is."""

    name, classes = "ramp", ("a", "b", "c")

    def __init__(self, n: int = 12, size: tuple[int, int] = (80, 60), split: str = "train") -> None:
        self.n, self.split = n, split
        self.labels = torch.arange(n) % 3
        self.image_ids = tuple(f"{i}" for i in range(n))
        self.image_sizes = torch.tensor([size] * n)

    def picture(self, i: int) -> Image.Image:
        width, height = self.image_size(i)
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        return Image.fromarray(np.stack([x, y, np.full_like(x, 10 * i)], axis=2).round().astype(np.uint8))

    def _boxes(self, i: int) -> torch.Tensor:
        return torch.tensor([[20.0, 15, 60, 45]])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def views(seed: int = 0) -> Choices:
    """All of them, nested."""
    data = Ramp()
    pseudo = PseudoSupervision(
        data, boxes=[torch.tensor([[20.0, 15, 60, 45]])] * 12, maps=torch.linspace(0, 1, 576).view(12, 6, 8)
    )
    return Choices(Triplets(Augmented(pseudo, resize=40, crop=32, seed=seed), seed=seed), 3, seed=seed)


def test_nested_views_give_every_key_and_pass_attributes_through():
    data = views()
    batch = collate([data[i] for i in range(4)])
    assert {"image", "label", "index", "view", "positive", "negative", "pseudo_boxes", "pseudo_maps"} == set(batch)
    assert batch["positive"].shape == (4, 3, 32, 32) and batch["pseudo_maps"].shape == (4, 32, 32)
    assert (
        data.classes == ("a", "b", "c")
        and len(data) == 12
        and data.image_sizes.shape == (12, 2)
        and data.name == "ramp"
    )
    assert torch.equal(data.labels, Ramp().labels)
    with pytest.raises(AttributeError):
        _ = data.nonsense


def test_views_keep_the_rule_of_weak_supervision():
    data = views()
    with pytest.raises(SupervisionError):
        data.boxes(0)
    assert "boxes" not in data[0]


def test_items_depend_on_seed_epoch_and_index_only():
    first = [views()[i] for i in range(12)]
    data = views()
    assert all(same(data[i], first[i]) for i in reversed(range(12)))  # any order, any number of times
    data.set_epoch(1)
    assert not all(same(data[i], first[i]) for i in range(12))
    data.set_epoch(0)
    assert all(same(data[i], first[i]) for i in range(12))
    assert not all(same(views(seed=1)[i], first[i]) for i in range(12))
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert same(views()[3], first[3])


@pytest.mark.parametrize("workers", [1, 2])
def test_set_epoch_reaches_workers_that_are_already_running(workers):
    data, alone = views(), views()
    loader = DataLoader(data, batch_size=3, num_workers=workers, persistent_workers=True, collate_fn=collate)  # type: ignore[arg-type]
    seen = []
    for epoch in range(3):
        data.set_epoch(epoch)
        alone.set_epoch(epoch)
        images = torch.cat([batch["image"] for batch in loader])
        assert torch.equal(images, torch.stack([alone[i]["image"] for i in range(12)]))
        seen.append(images)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_views_can_be_pickled():
    data = views()
    data.set_epoch(2)
    assert same(pickle.loads(pickle.dumps(data))[5], data[5])


def test_streams_and_keys_are_independent():
    draws = {
        tuple(generator(s, a, b, c).integers(2**31, size=2))
        for s in Stream
        for a in range(3)
        for b in range(3)
        for c in range(3)
    }
    assert len(draws) == 27 * len(Stream)


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_augmented_covers_all_crops_and_both_flips_evenly():
    data = Augmented(Ramp(400), resize=36, crop=32)
    frames = [data.frame(i) for i in range(400)]
    assert {f.crop[0] for f in frames} == {f.crop[1] for f in frames} == set(range(5))  # type: ignore[index]
    assert 160 < sum(f.flip for f in frames) < 240
    assert not any(Augmented(Ramp(20), resize=36, crop=32, flip=False).frame(i).flip for i in range(20))
    assert all((f.width, f.height) == (36, 36) for f in frames)


def test_boxes_move_with_the_picture():
    """Red and green at the corners of the moved box are what they were at the corners of the box in the original."""
    data = Augmented(Ramp(40, split="test"), random_resized=(0.5, 1.0), crop=64)
    checked = 0
    for i in range(40):
        item = data[i]
        x0, y0, x1, y1 = item["boxes"][0].round().long().tolist()
        if 0 <= x0 < x1 < 64 and 0 <= y0 < y1 < 64:
            left, right = (x1, x0) if data.frame(i).flip else (x0, x1)
            expected = torch.tensor([20 / 80, 15 / 60, 60 / 80, 45 / 60])
            found = torch.stack(
                [
                    item["image"][0, y0, left],
                    item["image"][1, y0, left],
                    item["image"][0, y1, right],
                    item["image"][1, y1, right],
                ]
            )
            assert (found - expected).abs().max() < 0.035
            checked += 1
    assert checked > 10


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 300), st.integers(4, 300), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 10_000))
def test_random_resized_crop_lies_inside_and_has_its_area(width, height, low, part, seed):
    high = low + part * (1 - low)
    data = Augmented(Ramp(1, (width, height)), random_resized=(low, high), crop=32, seed=seed)
    frame = data.frame(0)
    left, top, w, h = frame.window
    assert (w, h) == (32, 32) and 0 <= left <= frame.width - 32 and 0 <= top <= frame.height - 32
    parts = random_part(np.random.default_rng(seed), (width, height), (low, high))
    assert parts == (1.0, 1.0) or low * 0.999 <= parts[0] * parts[1] <= high * 1.001
    assert 0 < max(parts) <= 1


def test_augmented_refuses_what_cannot_be():
    data = Ramp()
    for wrong in ({}, {"resize": 40, "random_resized": (0.1, 1)}):
        with pytest.raises(ValueError, match=r"either resize"):
            Augmented(data, crop=32, **wrong)
    with pytest.raises(ValueError, match=r"crop of 64 does not fit"):
        Augmented(data, resize=32, crop=64)
    with pytest.raises(ValueError, match=r"range of areas"):
        Augmented(data, random_resized=(0.9, 0.1), crop=64)
    with pytest.raises(ValueError, match=r"wrap Triplets around Augmented"):
        Augmented(PseudoSupervision(Triplets(data), maps=torch.rand(12, 2, 2)), resize=32, crop=32)
    data.view = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"for evaluation"):
        Augmented(data, resize=32, crop=32)
    with pytest.raises(ValueError, match=r"subset .* first"):
        Triplets(Ramp()).subset([0])


# --- triplets ---------------------------------------------------------------------------------------------------------


def test_triplets_are_right_and_uniform():
    data = Triplets(Ramp(9))
    seen = {i: set() for i in range(9)}
    for epoch in range(60):
        data.set_epoch(epoch)
        for i in range(9):
            positive, negative = data.partners(i)
            assert positive != i and data.labels[positive] == data.labels[i] != data.labels[negative]
            seen[i].add((positive, negative))
    assert all({p for p, _ in pairs} == {j for j in range(9) if j != i and j % 3 == i % 3} for i, pairs in seen.items())
    assert all({n for _, n in pairs} == {j for j in range(9) if j % 3 != i % 3} for i, pairs in seen.items())
    counts = np.zeros(9)
    for epoch in range(3000):
        data.set_epoch(epoch)
        counts[data.partners(0)[1]] += 1
    assert counts[[0, 3, 6]].sum() == 0 and np.abs(counts[counts > 0] - 500).max() < 5 * np.sqrt(500)


def test_triplet_pictures_are_those_of_the_partners_with_frames_of_their_own():
    data = Triplets(Augmented(Ramp(9), resize=48, crop=32))
    frames = 0
    for i in range(9):
        item, partners = data[i], data.partners(i)
        for key, j in zip(("positive", "negative"), partners, strict=True):
            assert torch.allclose(item[key][2], torch.tensor(10 * j / 255))
            frames += torch.equal(item[key], data[j]["image"])
    assert frames <= 2  # of 18: a partner is not framed as it is in its own turn


def test_triplets_at_the_edges():
    lonely = Ramp(4)  # class 1 and 2 have one picture each
    assert Triplets(lonely).partners(1)[0] == 1
    with pytest.raises(ValueError, match=r"two classes"):
        Triplets(Ramp(12).subset([0, 3, 6]))


# --- pseudo supervision and choices -----------------------------------------------------------------------------------


def test_pseudo_supervision_moves_with_crop_and_flip_in_either_order():
    """The map is the picture's own red channel and the box is the true box: both must agree with the picture."""
    data = Ramp(30, split="test")
    maps = [torch.linspace(0, 1, 80).expand(60, 80) for _ in range(30)]
    boxes = [data._boxes(i) for i in range(30)]
    outside = PseudoSupervision(Augmented(data, resize=72, crop=48), boxes=boxes, maps=maps)
    inside = Augmented(PseudoSupervision(data, boxes=boxes, maps=maps), resize=72, crop=48)
    for i in range(30):
        a, b = outside[i], inside[i]
        assert torch.equal(a["pseudo_boxes"], b["pseudo_boxes"]) and torch.equal(a["pseudo_maps"], b["pseudo_maps"])
        assert (a["pseudo_maps"] - a["image"][0]).abs().max() < 0.02
        assert torch.equal(a["pseudo_boxes"], a["boxes"].clamp(0, 48)) and torch.equal(a["image"], b["image"])


def test_pseudo_box_outside_the_crop_becomes_empty():
    data = Augmented(Ramp(1), resize=64, crop=32, flip=False)
    boxes = [torch.tensor([[0.0, 0, 80, 60], [-50, -50, -40, -40]])]
    found = PseudoSupervision(data, boxes=boxes)[0]["pseudo_boxes"]
    assert found[0].tolist() == [0, 0, 32, 32] and found[1].tolist() == [0, 0, 0, 0]


def test_pseudo_supervision_must_fit():
    for wrong in ({}, {"boxes": [torch.zeros(1, 4)]}, {"maps": torch.rand(13, 2, 2)}):
        with pytest.raises(ValueError, match=r"one for each of the 12 pictures"):
            PseudoSupervision(Ramp(12), **wrong)


def maps_of(n: int) -> torch.Tensor:
    """Maps with a square in them, but for the second one, which is constant."""
    maps = torch.zeros(n, 8, 8)
    maps[:, 2:6, 2:6] = 1.0
    maps[1] = 1.0
    return maps


@pytest.mark.parametrize("threshold", ["otsu", 0.4, "zero"])
def test_pseudo_boxes_are_those_of_the_maps_in_the_frame(threshold):
    data, maps = Ramp(4), maps_of(4)
    found, expected = PseudoBoxes(data, maps, threshold=threshold), boxes_from_maps(maps, data.image_sizes, threshold)
    assert all(torch.equal(found[i]["pseudo_boxes"], expected[i]) for i in range(4))
    assert found[1]["pseudo_boxes"].shape == (0, 4)
    moved = collate([Augmented(PseudoBoxes(data, maps, threshold=threshold), resize=40, crop=40)[i] for i in range(4)])
    assert [len(boxes) for boxes in moved["pseudo_boxes"]] == [1, 0, 1, 1]
    x0, y0, x1, y1 = moved["pseudo_boxes"][0][0].tolist()
    assert (x0 + x1) / 2 == pytest.approx(20, abs=0.5) and (y0 + y1) / 2 == pytest.approx(20, abs=0.5)


def test_pseudo_boxes_need_a_map_for_each_picture():
    with pytest.raises(ValueError, match=r"a map for each of the 12 pictures, not 3"):
        PseudoBoxes(Ramp(12), maps_of(3))
    with pytest.raises(ValueError, match=r"a threshold is"):
        PseudoBoxes(Ramp(12), maps_of(12), threshold="best")


def oracle(n: int = 12) -> Ramp:
    data = Ramp(n)
    data.supervision = "oracle"
    return data


def test_disturbed_boxes_need_an_oracle():
    with pytest.raises(SupervisionError):
        DisturbedBoxes(Ramp(3), noise=0.0)
    with pytest.raises(ValueError, match="a share of boxes"):
        DisturbedBoxes(oracle(3), noise=2)


def test_disturbed_boxes_without_noise_are_the_true_ones():
    view = DisturbedBoxes(oracle(), noise=0.0)
    assert all(view[i]["pseudo_boxes"].tolist() == [[20, 15, 60, 45]] for i in range(12))


def test_disturbed_boxes_stay_wrong_and_move_with_the_picture():
    """Drawn once for each picture: no epoch changes them, another seed does; a share is wrong, at the same size."""
    view = DisturbedBoxes(oracle(200), noise=0.4, seed=3)
    first = [view[i]["pseudo_boxes"][0].tolist() for i in range(200)]
    view.set_epoch(5)
    assert [view[i]["pseudo_boxes"][0].tolist() for i in range(200)] == first
    wrong = [box != [20, 15, 60, 45] for box in first]
    assert sum(wrong) / 200 == pytest.approx(0.4, abs=0.1)
    assert all(box[2] - box[0] == pytest.approx(40) and box[3] - box[1] == pytest.approx(30) for box in first)
    other = DisturbedBoxes(oracle(200), noise=0.4, seed=4)
    assert [other[i]["pseudo_boxes"][0].tolist() for i in range(200)] != first
    framed = Augmented(view, resize=80, crop=80)
    for i in (0, 1, 2):
        frame = framed.frame(i)
        torch.testing.assert_close(
            framed[i]["pseudo_boxes"], frame.boxes(torch.tensor([first[i]]), (80, 60)).clamp(0, 80), atol=1e-3, rtol=0
        )


def test_the_largest_of_several_boxes_is_taken():
    boxes = torch.tensor([[0.0, 0, 30, 2], [5, 5, 15, 15], [0, 0, 10, 10]])
    assert largest(boxes).tolist() == [5, 5, 15, 15]
    data = oracle(1)
    data._boxes = lambda i: boxes
    assert DisturbedBoxes(data, noise=0.0)[0]["pseudo_boxes"].tolist() == [[5, 5, 15, 15]]


def test_recipes_name_the_views_of_pseudo_boxes():
    from_maps = View(name="PseudoBoxes", args={"threshold": 0.7}, needs={"maps": "ddt.maps"})
    found = _wrapped(from_maps, Ramp(4), {"maps": maps_of(4)}, 0, "here")
    assert isinstance(found, PseudoBoxes) and len(found.pseudo_boxes[0]) == 1
    noisy = _wrapped(View(name="DisturbedBoxes", args={"noise": 1.0}), oracle(4), {}, 7, "here")
    assert noisy.pseudo_boxes[0].tolist() == DisturbedBoxes(oracle(4), noise=1.0, seed=7).pseudo_boxes[0].tolist()


def test_choices_are_uniform_and_choose_the_augmentation():
    data = Ramp(300)
    small, large = Augmented(data, resize=32, crop=32), Augmented(data, resize=100, crop=32)
    chosen = Choices(data, [small, large])
    numbers = [chosen[i]["view"] for i in range(300)]
    assert 110 < sum(numbers) < 190
    assert all(chosen.frame(i).width == (32, 100)[numbers[i]] for i in range(300))
    chosen.set_epoch(4)
    assert large.epoch == small.epoch == 4 and numbers != [chosen.choice(i) for i in range(300)]
    assert {Choices(data, 3).choice(i) for i in range(100)} == {0, 1, 2}
    with pytest.raises(ValueError, match=r"at least 1"):
        Choices(data, 0)
    with pytest.raises(ValueError, match=r"same data set"):
        Choices(data, [Augmented(Ramp(2), resize=32, crop=32)])
