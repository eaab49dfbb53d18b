"""The generated world: the same bytes for ever, each knob turning one thing, and honest boxes and masks."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol_lib.data import scenes
from wsol_lib.data.dataset import collate
from wsol_lib.data.geometry import Frame
from wsol_lib.data.scenes import drawing, world
from wsol_lib.data.scenes.plan import labels
from wsol_lib.data.scenes.props import PROP_NUMBER
from wsol_lib.types import SupervisionError

EVERYTHING = {"instances": 3, "occlusion": 0.4, "reflection": 0.7, "clutter": 0.8, "classes": 40, "part_size": 0.2}
HASHES = {
    "plain": "ac520665f8590b50c89eb98bc648228aba556a16ea5af9b8295aa41108b7aa65",
    "everything": "a7c6a8ad5b8a608c47543af7a549a7e715f5cca5acd9d8f67183c2075990ffe2",
}


def digest(made: scenes.Scenes) -> str:
    parts = (made.images, made.masks, made.part_masks, made.labels.numpy(), made.habitats)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def plain() -> scenes.Scenes:
    return scenes.make(120, 3)


class TestBytes:
    @pytest.mark.parametrize(
        ("name", "made"),
        [("plain", {"n": 40, "seed": 0}), ("everything", {"n": 6, "seed": 11, "size": 224, **EVERYTHING})],
    )
    def test_pictures_are_the_same_for_ever(self, name, made):
        assert scenes.SCENES_VERSION == 1
        assert digest(scenes.make(**made)) == HASHES[name]

    def test_a_picture_does_not_depend_on_how_many_are_made(self, plain):
        few = scenes.make(17, 3)
        assert np.array_equal(few.images, plain.images[:17])
        assert few.captions == plain.captions[:17]

    def test_seeds_and_worlds_differ(self, plain):
        for other in (scenes.make(20, 4), scenes.make(20, 3, world=1)):
            assert not np.array_equal(other.images, plain.images[:20])
        assert scenes.make(20, 3, world=1).classes != plain.classes

    def test_many_worlds_take_turns_with_the_same_species_on_the_same_ground(self):
        one, three = scenes.make(6, 3, world=2), scenes.make(6, 3, world=2, worlds=3)
        assert three.classes == one.classes and three.captions == one.captions
        turns = [np.array_equal(a, b) for a, b in zip(one.images, three.images, strict=True)]
        assert turns == [True, False, False, True, False, False]
        nothing = ~(one.masks | three.masks)
        assert nothing.mean() > 0.5 and np.abs(one.images[nothing] - three.images[nothing].astype(int)).mean() < 2
        assert len({world.builds(number) for number in (2, 3, 4)}) == 3
        assert digest(three.subset([4])) == digest(scenes.make(6, 3, world=2, worlds=3).subset([4]))
        with pytest.raises(ValueError, match="worlds must be between 1 and 100, not 0"):
            scenes.make(1, 0, worlds=0)

    def test_drawing_one_by_one_equals_drawing_all(self, plain):
        lazy = scenes.make(5, 3)
        assert np.array_equal(np.asarray(lazy.picture(4)), plain.images[4])
        assert np.array_equal(lazy.images, plain.images[:5])

    def test_both_sizes_show_the_same_scene(self, plain):
        large = scenes.make(30, 3, size=224)
        for i in range(30):
            assert torch.allclose(large.boxes(i) * 64 / 224, plain.boxes(i), atol=1.5)
        small = large.images[:12].reshape(12, 32, 7, 32, 7, 3).mean((2, 4))
        same = plain.images[:12].reshape(12, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(small - same).mean() < 5


class TestTruth:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        instances=st.integers(1, 4),
        occlusion=st.floats(0, 0.8),
        reflection=st.floats(0, 1),
        part_size=st.floats(0.05, 0.6),
        size=st.sampled_from([32, 64, 97]),
    )
    def test_boxes_bound_the_mask_and_parts_lie_within(self, seed, size, **knobs):
        made = scenes.make(4, seed, size=size, **knobs)
        assert not (made.part_masks & ~made.masks).any()
        for i in range(4):
            mask, boxes = made.mask(i).numpy(), made.boxes(i).int().tolist()
            assert 1 <= len(boxes) <= knobs["instances"]
            covered = np.zeros_like(mask)
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
                covered[y0:y1, x0:x1] = True
                inside = mask[y0:y1, x0:x1]
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            assert not (mask & ~covered).any()

    @pytest.mark.parametrize("instances", [1, 2, 3, 4])
    def test_one_box_for_each_object(self, instances):
        made = scenes.make(60, 5, instances=instances)
        assert all(len(made.boxes(i)) == instances for i in range(60))

    def test_every_part_can_be_seen(self):
        made = scenes.make(200, 6, classes=200, size=96)
        assert made.part_masks.any((1, 2)).all()

    def test_parts_show_their_colour(self):
        made = scenes.make(48, 6, size=128, context_bias=0, habitats="own")
        for i in np.flatnonzero(made._plan.moods == 0):
            seen = made.images[i][made.part_masks[i]].mean(0)
            if made.habitats[i] == 1:
                continue  # under water everything is bluish
            colours = np.array(list(world.PART_COLOURS.values()), dtype=float)
            nearest = np.abs(colours * 0.86 - seen).sum(1).argmin()
            assert list(world.PART_COLOURS)[nearest] == made.species[made.labels[i]].colour

    def test_objects_vary_in_size_and_no_centred_box_finds_them(self):
        made = scenes.make(300, 7)
        boxes = torch.cat([made.boxes(i) for i in range(300)])
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 64**2
        assert area.quantile(0.02) > 0.04 and area.quantile(0.98) < 0.5
        assert area.quantile(0.1) < 0.12 and area.quantile(0.9) > 0.3
        assert max(centred_hits(boxes, w, h) for w in range(8, 33, 4) for h in range(8, 33, 4)) < 0.4

    def test_a_subset_keeps_everything(self, plain):
        part = plain.subset([7, 2])
        assert np.array_equal(part.images, plain.images[[7, 2]])
        assert part.captions == [plain.captions[7], plain.captions[2]]
        assert torch.equal(part.boxes(1), plain.boxes(2)) and part.image_ids[0] == "scene-000007"
        assert part[0]["label"] == plain.labels[7]


def centred_hits(boxes: torch.Tensor, half_width: int, half_height: int) -> float:
    box = torch.tensor([32 - half_width, 32 - half_height, 32 + half_width, 32 + half_height])
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    both = sides.prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + 4 * half_width * half_height - both
    return float((both / union >= 0.5).float().mean())


class TestKnobs:
    @pytest.mark.parametrize(
        "knob", [{"context_bias": 1.0}, {"habitats": "swapped"}, {"clutter": 1.0}, {"reflection": 1.0}, {"clutter": 0}]
    )
    def test_landscape_knobs_leave_objects_alone(self, plain, knob):
        other = scenes.make(40, 3, **knob)
        assert torch.equal(other.labels, plain.labels[:40])
        assert np.array_equal(other.masks, plain.masks[:40])
        assert np.array_equal(other.part_masks, plain.part_masks[:40])
        assert not np.array_equal(other.images, plain.images[:40])

    @pytest.mark.parametrize("knob", [{"part_size": 0.1}, {"occlusion": 0.5}, {"instances": 3}, {"reflection": 1.0}])
    def test_object_knobs_leave_the_landscape_alone(self, plain, knob):
        other = scenes.make(40, 3, **knob)
        assert np.array_equal(other.habitats, plain.habitats[:40])
        assert np.array_equal(other._plan.moods, plain._plan.moods[:40])
        assert torch.equal(other.labels, plain.labels[:40])

    def test_part_size_changes_only_the_part(self, plain):
        other = scenes.make(40, 3, part_size=0.1)
        assert np.array_equal(other._plan.places, plain._plan.places[:40])
        share = [s.part_masks.sum() / s.masks.sum() for s in (other, scenes.make(40, 3, part_size=0.5))]
        assert share[0] < 0.03 and share[1] > 0.12

    @pytest.mark.parametrize(("bias", "expected"), [(0.0, 1 / 6), (0.5, 0.5 + 0.5 / 6), (1.0, 1.0)])
    def test_context_bias_is_the_share_at_home(self, bias, expected):
        made = scenes.make(3000, 9, context_bias=bias)
        home = np.array([s.habitat for s in made.species])[made.labels]
        assert abs((home == made.habitats).mean() - expected) < 0.025

    def test_swapped_habitats_are_always_wrong_and_shuffled_ones_say_nothing(self):
        swapped = scenes.make(600, 9, context_bias=1.0, habitats="swapped")
        home = np.array([s.habitat for s in swapped.species])[swapped.labels]
        assert (home != swapped.habitats).all()
        assert len(set(zip(swapped.labels.tolist(), swapped.habitats.tolist(), strict=True))) == 12
        shuffled = scenes.make(3000, 9, context_bias=1.0, habitats="shuffled")
        home = np.array([s.habitat for s in shuffled.species])[shuffled.labels]
        assert abs((home == shuffled.habitats).mean() - 1 / 6) < 0.03

    def test_the_home_of_a_species_is_shared_with_other_families_only(self):
        homes = {(s.family, s.habitat) for s in scenes.make(1, 0).species}
        assert len(homes) == 12

    def test_occlusion_hides_about_its_fraction(self):
        whole = scenes.make(200, 8)
        seen = [scenes.make(200, 8, occlusion=o).masks.sum((1, 2)) / whole.masks.sum((1, 2)) for o in (0.2, 0.5, 0.8)]
        assert all((s <= 1).all() for s in seen)
        assert seen[0].mean() > seen[1].mean() + 0.15 > seen[2].mean() + 0.3
        assert abs(seen[1].mean() - 0.5) < 0.12

    def test_no_water_without_reflection(self, plain):
        pool = PROP_NUMBER["pool"]
        share = [(scenes.make(400, 1, reflection=r)._plan.places[..., 0] == pool).any(1).mean() for r in (0, 0.5, 1)]
        assert share[0] == 0 and abs(share[1] - 0.5) < 0.1 and share[2] == 1

    @pytest.mark.parametrize(
        "bad",
        [
            {"context_bias": 1.2},
            {"part_size": 0.0},
            {"instances": 0},
            {"instances": 5},
            {"instances": 1.5},
            {"occlusion": 1.0},
            {"reflection": -0.1},
            {"clutter": float("nan")},
            {"classes": 201},
            {"classes": 1},
            {"families": 5},
            {"world": -1},
            {"habitats": "elsewhere"},
            {"size": 8},
            {"seed": -1},
        ],
    )
    def test_a_bad_knob_is_named(self, bad):
        (name,) = bad
        with pytest.raises(ValueError, match=name):
            scenes.make(**{"n": 2, "seed": 0, **bad})


class TestClasses:
    @pytest.mark.parametrize("number", [0, 1, 9])
    def test_two_hundred_species_are_all_different(self, number):
        species = world.all_species(number)
        assert len({s.name for s in species}) == 200 == len({(s.family, s.part, s.colour, s.pattern) for s in species})
        assert {s.family for s in species[:4]} == {0, 1, 2, 3} and {s.habitat for s in species} == set(range(6))

    def test_one_family_shares_its_body(self):
        made = scenes.make(1, 0, classes=50, families=1, world=2)
        assert set(made.families) == {"heron"} and len(set(made.classes)) == 50
        assert scenes.make(1, 0, classes=6, families=2).families == ("heron", "deer") * 3
        with pytest.raises(ValueError, match="classes"):
            scenes.make(1, 0, classes=51, families=1)

    def test_families_take_turns_whatever_the_world(self):
        assert scenes.make(1, 0, world=3).families == ("heron", "deer", "fish", "beetle") * 3

    def test_two_hundred_sprites_are_all_different(self):
        sprites = {world.animal(s, world.builds()[s.family], 0, 0.3).tobytes() for s in world.all_species()}
        assert len(sprites) == 200

    @pytest.mark.parametrize("classes", [2, 12, 50])
    def test_labels_are_balanced(self, classes):
        assert (np.bincount(labels(3 * classes, 5, classes)) == 3).all()

    def test_captions_tell_species_and_habitat(self, plain):
        for caption, label, habitat in zip(plain.captions, plain.labels, plain.habitats, strict=True):
            assert plain.classes[label] in caption and plain.families[label] in caption
            assert plain.habitat_names[habitat] in caption
        assert len({caption.split()[0] for caption in plain.captions}) >= 3

    def test_captions_count(self):
        made = scenes.make(30, 3, instances=3)
        assert all("three " in caption for caption in made.captions)


class TestAsDataset:
    def test_training_shows_no_boxes_and_no_masks(self):
        train = scenes.make(4, 0, split="train")
        for look in (train.boxes, train.mask, lambda i: train.masks, lambda i: train.part_masks):
            with pytest.raises(SupervisionError):
                look(0)
        assert set(train[0]) == {"image", "label", "index", "caption"}
        assert {"boxes", "mask"} <= set(scenes.make(4, 0, split="train", supervision="oracle")[0])
        with pytest.raises(SupervisionError):
            train.subset([1]).boxes(0)

    def test_items_collate(self, plain):
        batch = collate([plain[i] for i in (0, 5)])
        assert batch["image"].shape == (2, 3, 64, 64) and batch["masks"].shape == (2, 64, 64)
        assert batch["caption"] == [plain.captions[0], plain.captions[5]] and len(batch["boxes"]) == 2
        assert torch.equal(batch["image"][1], torch.from_numpy(plain.images[5]).permute(2, 0, 1) / 255)

    def test_picture_and_truth_move_together(self, plain):
        item = plain.item(4, Frame(64, 64, crop=(3, 0, 60, 64), flip=True))
        still = plain[4]
        assert torch.equal(item["image"], still["image"][:, :, 3:63].flip(2))
        assert torch.equal(item["mask"], still["mask"][:, 3:63].flip(1))
        assert torch.equal(item["boxes"][:, 0], 63 - still["boxes"][:, 2])


class TestDistances:
    """The drawn area of single shapes against geometry."""

    @staticmethod
    def area(shape: np.ndarray, size: int = 200) -> float:
        place = np.zeros((1, drawing.PLACE_COLUMNS))
        place[0, 1:8] = 0.5, 0.5, 1, 0, 0, 1, 1
        place[0, 8:13] = 1, 1, 1, 1, 1
        picture, owner = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
        sky = np.array([0.5, 0.5, 0.2, 1.0])
        starts = np.array([0, 1])
        drawing.draw(world.PALETTES[0, 0], world.RELIEFS[0], sky, place, shape[None], starts, picture, owner)
        return float((owner == 1).mean())

    def test_areas(self):
        style = {"outline": False}
        red = (200.0, 0.0, 0.0)
        assert self.area(drawing.ellipse(0, 0, 0.3, 0.1, red, 30, **style)) == pytest.approx(np.pi * 0.03, rel=0.01)
        capsule = drawing.capsule(-0.2, 0, 0.1, 0.2, 0, 0.1, red, **style)
        assert self.area(capsule) == pytest.approx(0.08 + np.pi * 0.01, rel=0.01)
        for points in ((-0.3, 0.2, 0.3, 0.2, 0, -0.2), (0.3, 0.2, -0.3, 0.2, 0, -0.2)):
            assert self.area(drawing.triangle(points, red, **style)) == pytest.approx(0.12, rel=0.01)


@pytest.mark.slow
def test_compiled_and_interpreted_drawing_agree_to_the_byte():
    code = (
        "import hashlib; from wsol_lib.data import scenes; "
        "made = scenes.make(4, 4, size=24, instances=2, occlusion=0.3, reflection=1.0, classes=200); "
        "print(hashlib.sha256(made.images.tobytes() + made.masks.tobytes()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | jit, capture_output=True, text=True, check=True
        ).stdout
        for jit in ({"NUMBA_DISABLE_JIT": "0"}, {"NUMBA_DISABLE_JIT": "1"})
    }
    assert len(outputs) == 1 and len(outputs.pop()) == 65
