"""Anchors: by hand, by slow Gram-Schmidt and by eigenvectors, what leaves them alone, what is refused, real names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol_lib import backbones, data
from wsol_lib.text import class_anchors, class_embeddings, embed_classes, imagenet_embeddings, orthogonal_anchors
from wsol_lib.types import DataMissing, RecipeError

METHODS = ("qr", "lowdin", "frame")


def random(classes, width, seed=0):
    return torch.randn(classes, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(anchors):
    """Between different rows, Float[K,K-1]."""
    unit = F.normalize(anchors, dim=1)
    others = ~torch.eye(len(anchors), dtype=torch.bool)
    return (unit @ unit.T)[others].view(len(anchors), -1)


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


# --- by hand


def test_two_vectors_at_sixty_degrees():
    """Gram-Schmidt turns the second by 30 degrees, Löwdin each by 15."""
    embeddings = torch.tensor([[2, 0], [2.5, 2.5 * math.sqrt(3)]], dtype=torch.float64)
    same(orthogonal_anchors(embeddings, "qr"), torch.eye(2).double())
    c, s = math.cos(math.pi / 12), math.sin(math.pi / 12)
    for method in ("lowdin", "frame"):
        same(orthogonal_anchors(embeddings, method), torch.tensor([[c, -s], [s, c]], dtype=torch.float64))


def test_three_vectors_in_a_plane_become_a_star():
    """The tight frame of three directions 60 degrees apart, as lines: they are evenly spread, and stay."""
    angles = torch.arange(3, dtype=torch.float64) * math.pi / 3
    star = torch.stack([angles.cos(), angles.sin()], 1)
    same(orthogonal_anchors(torch.tensor([[3.0], [1], [7]]).double() * star, "frame"), star)
    assert cosines(star).abs().flatten().tolist() == pytest.approx([0.5] * 6)  # the Welch bound of (3, 2)


def test_two_alike_and_one_alone():
    """x, x, y: T^T T = diag(2, 1), so the frame before its scaling is x/sqrt 2 twice and y."""
    embeddings = torch.tensor([[1.0, 0, 0], [4, 0, 0], [0, 2, 0]])
    assert orthogonal_anchors(embeddings, "frame").tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_the_first_anchor_is_its_embedding_and_not_its_opposite():
    for seed in range(5):
        embeddings = random(6, 9, seed)
        assert (torch.linalg.qr(embeddings.T).R.diagonal() < 0).any(), "LAPACK turns some round"
        anchors = orthogonal_anchors(embeddings, "qr")
        same(anchors[0], embeddings[0] / embeddings[0].norm())
        assert ((anchors * embeddings).sum(1) > 0).all()


# --- what they are


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize(("classes", "width"), [(1, 1), (1, 4), (5, 8), (7, 7)])
def test_up_to_d_classes_have_orthonormal_anchors(method, classes, width):
    anchors = orthogonal_anchors(random(classes, width), method)
    assert anchors.shape == (classes, width)
    same(anchors @ anchors.T, torch.eye(classes).double())


def slow_gram_schmidt(embeddings):
    anchors = []
    for row in embeddings.numpy():
        for anchor in anchors:
            row = row - (row @ anchor) * anchor
        anchors.append(row / np.linalg.norm(row))
    return torch.from_numpy(np.stack(anchors))


def slow_polar(embeddings):
    """(T T^T)^(-1/2) T by the eigenvectors of the matrix of cosines, of full rank."""
    rows = F.normalize(embeddings, dim=1)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors @ torch.diag(values**-0.5) @ vectors.T @ rows


def slow_frame(embeddings):
    """T (T^T T)^(-1/2), then unit rows."""
    rows = F.normalize(embeddings, dim=1)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return F.normalize(rows @ vectors @ torch.diag(values**-0.5) @ vectors.T, dim=1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 8), width=st.integers(1, 8))
def test_equal_to_slow_references(seed, classes, width):
    embeddings = random(classes, width, seed)
    if torch.linalg.cond(embeddings) > 1e3:
        return
    if classes <= width:
        same(orthogonal_anchors(embeddings, "qr"), slow_gram_schmidt(embeddings))
        same(orthogonal_anchors(embeddings, "lowdin"), slow_polar(embeddings))
    else:
        same(orthogonal_anchors(embeddings, "frame"), slow_frame(embeddings))


def test_lowdin_is_the_nearest():
    embeddings = F.normalize(random(4, 6) + 1.5, dim=1)
    nearest = (orthogonal_anchors(embeddings, "lowdin") - embeddings).norm()
    others = [orthogonal_anchors(embeddings, "qr"), *(torch.linalg.qr(random(6, 4, s)).Q.T for s in range(20))]
    assert all(nearest < (other - embeddings).norm() for other in others)


@pytest.mark.parametrize(("width", "least"), [(768, 0.01739), (512, 0.03089)])
def test_a_thousand_classes_come_near_the_welch_bound(width, least):
    anchors = orthogonal_anchors(random(1000, width), "frame")
    assert anchors.shape == (1000, width)
    same(anchors.norm(dim=1), torch.ones(1000).double())
    assert math.sqrt((1000 - width) / (width * 999)) == pytest.approx(least, abs=5e-6)
    assert least <= cosines(anchors).square().mean().sqrt() < 1.01 * least


def test_the_frame_has_the_cosines_of_a_literal_qr():
    embeddings = F.normalize(random(30, 8), dim=1)
    literal = torch.linalg.qr(embeddings).Q  # [K,d]
    same(cosines(orthogonal_anchors(embeddings, "frame")), cosines(literal))
    assert torch.linalg.qr(embeddings.T).Q.shape == (8, 8), "eight columns for thirty classes: no error, no anchor"


def test_auto_is_qr_where_it_can_be():
    few, many = random(5, 6), random(7, 6)
    assert torch.equal(orthogonal_anchors(few), orthogonal_anchors(few, "qr"))
    assert torch.equal(orthogonal_anchors(many), orthogonal_anchors(many, "frame"))


# --- what changes them


@pytest.mark.parametrize("method", METHODS)
def test_the_norms_of_embeddings_do_not_matter(method):
    embeddings, scale = random(5, 8), torch.tensor([[1e-6], [3], [1], [1e6], [40]])
    same(orthogonal_anchors(scale * embeddings, method), orthogonal_anchors(embeddings, method))


@pytest.mark.parametrize(("method", "width"), [("lowdin", 8), ("frame", 8), ("frame", 3)])
def test_order_and_rotation_go_through(method, width):
    embeddings, order, turn = (
        random(6, width),
        torch.tensor([3, 0, 5, 1, 4, 2]),
        torch.linalg.qr(random(width, width)).Q,
    )
    anchors = orthogonal_anchors(embeddings, method)
    same(orthogonal_anchors(embeddings[order], method), anchors[order])
    same(orthogonal_anchors(embeddings @ turn, method), anchors @ turn)


def test_qr_depends_on_the_order():
    embeddings = random(5, 8) + 2  # alike
    forwards, backwards = orthogonal_anchors(embeddings, "qr"), orthogonal_anchors(embeddings.flip(0), "qr").flip(0)
    same(backwards[-1], F.normalize(embeddings, dim=1)[-1])
    kept = (forwards * F.normalize(embeddings, dim=1)).sum(1)
    assert kept[0] == pytest.approx(1) and kept[-1] < 0.7
    assert (forwards - backwards).abs().max() > 0.3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_work_is_done_in_double_and_given_back_as_it_came(method, dtype):
    embeddings = random(20, 32).to(dtype).requires_grad_()
    anchors = orthogonal_anchors(embeddings, method)
    assert anchors.dtype == dtype and not anchors.requires_grad
    assert torch.equal(anchors, orthogonal_anchors(embeddings.double(), method).to(dtype))


def test_names_that_are_nearly_alike_are_still_orthogonal():
    """Cosines of .999999 in single precision: Gram-Schmidt in single precision would lose the fourth digit."""
    embeddings = (1 + 1e-3 * random(10, 64)).float()
    for method in METHODS:
        assert cosines(orthogonal_anchors(embeddings, method).double()).abs().max() < 1e-6


# --- what is refused


def test_an_unknown_method_is_refused():
    with pytest.raises(RecipeError, match="no method 'svd': choose one of qr, lowdin, frame, auto"):
        orthogonal_anchors(random(3, 4), "svd")


@pytest.mark.parametrize("method", ["qr", "lowdin"])
def test_more_than_d_orthogonal_vectors_are_refused(method):
    with pytest.raises(RecipeError, match="9 vectors cannot be orthogonal in 8 dimensions: choose the method 'frame'"):
        orthogonal_anchors(random(9, 8), method)


@pytest.mark.parametrize("method", ["qr", "lowdin", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_embeddings_are_refused_and_one_is_named(method, dtype):
    twice, mixed = random(6, 9), random(6, 9)
    twice[4] = 3 * twice[1]
    mixed[3] = mixed[0] - 2 * mixed[2]
    for embeddings, named in ((twice, 4), (mixed, 3)):
        with pytest.raises(RecipeError, match=f"6 classes have 5 independent .* class {named} adds least"):
            orthogonal_anchors(embeddings.to(dtype), method)


@pytest.mark.parametrize("width", [4, 9])
def test_the_frame_of_dependent_embeddings_keeps_equal_ones_equal(width):
    embeddings = random(6, width).float()
    embeddings[4] = embeddings[1]
    anchors = orthogonal_anchors(embeddings, "frame")
    torch.testing.assert_close(anchors[4], anchors[1])
    torch.testing.assert_close(anchors.norm(dim=1), torch.ones(6))
    if width == 9:
        others = [0, 1, 2, 3, 5]
        torch.testing.assert_close(anchors[others] @ anchors[others].T, torch.eye(5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_an_embedding_without_direction_is_refused(method, value):
    embeddings = random(4, 6)
    embeddings[2] = value
    with pytest.raises(RecipeError, match="class 2 has no direction"):
        orthogonal_anchors(embeddings, method)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (4, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"embeddings are Float\[K,d\]"):
        orthogonal_anchors(torch.ones(shape))


# --- real names


@pytest.fixture(scope="module")
def imagenet(wsol_data):
    """CLIP ViT-B/32 features of the 1000 names of ImageNet, Float32[1000,512], as published: not normalised."""
    path = wsol_data / "clip-text" / "imagenet1k_vitb32_text_features.npy"
    return torch.from_numpy(np.load(path, allow_pickle=False)).float()


TWINS = [(134, 517), (264, 474), (638, 639)]  # crane, cardigan, maillot


@pytest.mark.needs("clip-text")
def test_names_of_imagenet_are_alike_and_their_anchors_are_not(imagenet):
    assert cosines(imagenet).mean() == pytest.approx(0.65, abs=0.005)
    names = imagenet[:200]
    for method in ("qr", "lowdin"):
        anchors = orthogonal_anchors(names, method)
        torch.testing.assert_close(anchors @ anchors.T, torch.eye(200), atol=1e-6, rtol=0)
    kept = {m: (orthogonal_anchors(names, m) * F.normalize(names, dim=1)).sum(1) for m in ("qr", "lowdin")}
    assert kept["qr"][0] > 0.9999 > kept["qr"][-1] and kept["lowdin"].min() > kept["qr"].min()


@pytest.mark.needs("clip-text")
def test_a_thousand_names_in_512_dimensions(imagenet):
    anchors = orthogonal_anchors(imagenet)
    assert anchors.shape == (1000, 512)
    assert cosines(anchors).square().mean().sqrt() == pytest.approx(0.0309, abs=1e-3)
    text = F.normalize(imagenet.double(), dim=1)
    q, r = torch.linalg.qr(text)
    literal = F.normalize(q * r.diagonal().sign(), dim=1)
    torch.testing.assert_close(cosines(anchors), cosines(literal).float(), atol=1e-5, rtol=0)
    assert (anchors * text).sum(1).mean() == pytest.approx(0.46, abs=0.005)
    assert (literal * text).sum(1).mean() == pytest.approx(0.31, abs=0.005)


@pytest.mark.needs("clip-text")
def test_classes_of_one_name(imagenet):
    anchors = orthogonal_anchors(imagenet, "frame")
    for first, second in TWINS:
        assert torch.equal(imagenet[first], imagenet[second])
        torch.testing.assert_close(anchors[first], anchors[second], atol=1e-5, rtol=0)
    with pytest.raises(RecipeError, match="500 classes have 499 independent directions, and that of class 474 adds"):
        orthogonal_anchors(imagenet[:500], "qr")


# --- names to embeddings to anchors


def letters(sentences):
    """How often a, b and c stand in each sentence."""
    return torch.tensor([[text.count(letter) for letter in "abc"] for text in sentences]).float()


def test_names_in_a_template_by_hand():
    found = class_embeddings(["b", "bb", "c"], letters, "a {}")
    half, fifth = 0.5**0.5, 0.2**0.5
    expected = torch.tensor([[half, half, 0], [fifth, 2 * fifth, 0], [half, 0, half]])
    torch.testing.assert_close(found, expected)


def test_a_template_without_a_place_and_a_name_without_a_direction_are_refused():
    with pytest.raises(RecipeError, match="no place for the name"):
        class_embeddings(["b"], letters, "a bird")
    with pytest.raises(RecipeError, match="class 1 has no direction"):
        class_embeddings(["b", "x"], letters, "{}")


def test_the_kinds_of_anchors():
    texts = random(4, 6)
    torch.testing.assert_close(class_anchors(texts, "text"), F.normalize(texts, dim=1))
    for kind in METHODS:
        assert torch.equal(class_anchors(texts, kind), orthogonal_anchors(texts, kind))
    torch.manual_seed(0)
    one, two = class_anchors(texts, "random"), class_anchors(100 * texts, "random")
    for anchors in (one, two):
        torch.testing.assert_close(anchors @ anchors.T, torch.eye(4), atol=1e-6, rtol=0)
    assert not torch.allclose(one, two)
    assert class_anchors(random(9, 6), "random").shape == (9, 6)
    with pytest.raises(RecipeError, match="no kind 'gram'"):
        class_anchors(texts, "gram")


def test_only_classes_of_imagenet_have_its_texts():
    with pytest.raises(RecipeError, match="none of ImageNet"):
        embed_classes(data.load("scenes", "train", n=1), "imagenet-clip", "")
    with pytest.raises(RecipeError, match="mean 'ViT-B-16'"):
        embed_classes(data.load("scenes", "train", n=1), "ViT-B-61", "a {}")


def test_texts_that_are_not_there(tmp_path):
    with pytest.raises(DataMissing, match="clip-text"):
        imagenet_embeddings(["n02123045"], tmp_path)


@pytest.mark.needs("clip-text", "tiny-imagenet")
def test_the_texts_of_tiny_imagenet_are_those_of_its_own_classes(imagenet):
    tiny = data.load("tiny-imagenet", "val")
    found = embed_classes(tiny, "imagenet-clip", "")
    rows = [list(backbones.ImageNetInfo().label_names()).index(wnid) for wnid in tiny.wnids]
    torch.testing.assert_close(found, F.normalize(imagenet[rows], dim=1))
    names = {name: k for k, name in enumerate(tiny.classes)}
    animals = found[[names["Egyptian cat"], names["tabby"], names["volleyball"]]]
    assert animals[0] @ animals[1] > animals[0] @ animals[2] + 0.1
    independent = class_anchors(found, "auto")
    torch.testing.assert_close(independent @ independent.T, torch.eye(len(found)), atol=1e-5, rtol=0)
