"""Mini-CLIP: its words, its size, its loss by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Squares

from wsol_lib import data, engine
from wsol_lib.methods.clip_maps import ClipMaps, encode, patch_features
from wsol_lib.mini_clip import CONTEXT, WORDS, MiniCLIP, WordTokenizer, contrastive_loss, mini_clip
from wsol_lib.types import RecipeError

TOKENIZER = WordTokenizer()


@pytest.mark.parametrize("world", range(5))
@pytest.mark.parametrize("instances", [1, 4])
def test_it_knows_every_word_of_every_world(world, instances):
    scenes = data.load("scenes", "train", n=400, world=world, classes=200, instances=instances)
    rows = TOKENIZER([*scenes.captions, *scenes.classes])
    assert rows.shape == (600, CONTEXT) and rows.max() == TOKENIZER.end == TOKENIZER.size - 1


def test_no_word_is_idle():
    seen = set()
    for world in range(5):
        for instances in (1, 2, 3, 4):
            scenes = data.load("scenes", "train", n=400, world=world, classes=200, instances=instances)
            seen |= {word for text in scenes.captions for word in re.findall("[a-z]+", text)}
    assert seen == set(WORDS)


def test_a_sentence_by_hand():
    short = WordTokenizer(("a", "fish", "red"), context=7)
    assert short("Red, a red-fish").tolist() == [[4, 3, 1, 3, 2, 5, 0]]
    assert short(["a", "fish"]).tolist() == [[4, 1, 5, 0, 0, 0, 0], [4, 2, 5, 0, 0, 0, 0]]
    with pytest.raises(RecipeError, match="'fisch'; did you mean 'fish'"):
        short("a fisch")
    with pytest.raises(RecipeError, match="at most 5 words, not the 6"):
        short("a a a a a a")


def test_the_towers_are_open_clips_and_small():
    model = mini_clip(TOKENIZER).eval()
    images, texts = torch.rand(3, 3, 64, 64), TOKENIZER(["a red-finned fish", "a deer", "a deer at dusk"])
    with torch.no_grad():
        v, t = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
        longer = F.pad(texts[:, :-4], (0, 4))
        assert torch.allclose(model.encode_text(longer, normalize=True), t, atol=1e-6), "what fills up is not read"
    assert v.shape == t.shape == (3, 128)
    assert not torch.allclose(t[1], t[2])
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 6e6  # bytes in half precision


def test_the_loss_by_hand():
    v, scale = torch.eye(2), torch.tensor(2.0)
    apart = torch.eye(2, dtype=torch.bool)
    assert contrastive_loss(v, v, scale, apart).item() == pytest.approx(math.log1p(math.exp(-2)))
    alike = torch.ones(2, 2, dtype=torch.bool)
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert contrastive_loss(one, one, scale, alike).item() == pytest.approx(math.log(2))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_loss_pair_by_pair(seed):
    generator = torch.Generator().manual_seed(seed)
    v, t = (F.normalize(torch.randn(5, 4, generator=generator), dim=1) for _ in range(2))
    captions = torch.randint(3, (5,), generator=generator)
    same = captions[:, None] == captions
    expected = 0.0
    for i in range(5):
        for first, second in ((v, t), (t, v)):
            logs = (3.0 * first[i] @ second.T).log_softmax(0)
            expected -= sum(logs[j].item() for j in range(5) if same[i, j]) / int(same[i].sum()) / 10
    assert contrastive_loss(v, t, torch.tensor(3.0), same).item() == pytest.approx(expected, rel=1e-5)


SMALL = ["data.options.n=96", "evaluate.options.n=24", "stages.0.epochs=1", "stages.0.batch_size=32"]


def test_it_learns_through_the_engine_and_then_names_and_points(tmp_path):
    run = engine.run(engine.load_recipe("pretrain/scenes-clip", SMALL), tmp_path, progress=False)
    assert len(run.localizer.classes) == 200 and run.results["scores"]["top1_cls"] >= 0
    images = torch.rand(2, 3, 64, 64)
    found = run.localizer.localize(images, torch.tensor([3, 199]))
    assert found.logits.shape == (2, 200) and found.maps.shape == (2, 8, 8)


def test_pointing_leaves_the_training_alone():
    model = MiniCLIP(["a red-finned fish", "a deer"], kind="clip-es").train()
    found = model.localize(torch.rand(2, 3, 64, 64))
    assert found.maps.shape == (2, 8, 8) and model.model.training
    batch = {"image": torch.rand(2, 3, 64, 64), "caption": ["a deer in the snow", "a fish"]}
    (loss,) = model.losses(batch).values()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.parameters())


def test_unknown_kinds_and_words_are_refused():
    with pytest.raises(RecipeError, match="MiniCLIP has no kind 'cam'"):
        MiniCLIP(["a deer"], kind="cam")
    with pytest.raises(RecipeError, match="MiniCLIP has no pool 'max'"):
        MiniCLIP(["a deer"], pool="max")
    with pytest.raises(RecipeError, match="not learned the word 'zebra'"):
        MiniCLIP(["zebra"])


def test_the_mean_of_patches_embeds_a_picture_where_it_is_asked_to():
    images = torch.rand(2, 3, 64, 64)
    for pool, mean in (("tok", False), ("avg", True)):
        ours = ClipMaps(mini_clip(TOKENIZER, pool), torch.randn(3, 128))
        seen = encode(ours.visual, images)
        patches = patch_features(ours.visual, seen.after, seen.grid).mean((2, 3))
        assert torch.allclose(patches, seen.image, atol=1e-5) == mean


def test_pictures_without_captions_are_refused():
    with pytest.raises(RecipeError, match="caption"):
        engine.fit(MiniCLIP(["a deer"]), Squares(8), engine.load_recipe("pretrain/scenes-clip", SMALL), progress=False)
