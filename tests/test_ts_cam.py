"""TS-CAM: rows against timm's own matrices, the coupled map by hand and by a loop, any transformer and size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Squares

from wsol_lib import engine
from wsol_lib.backbones import create
from wsol_lib.data import load
from wsol_lib.inference import ten_crop_probabilities
from wsol_lib.methods.ts_cam import TSCAM, ClassToken, class_rows, couple, roll_up
from wsol_lib.recipe import Recipe
from wsol_lib.types import Localization, RecipeError

CLASSES = 5
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
KINDS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "qk_norm": True, "init_values": 0.5}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "pre-norm": ("vit_tiny_patch16_224", {"pre_norm": True, "no_embed_class": True, "reg_tokens": 1}),
}


def transformer(kind="plain", **options):
    """A small transformer whose attention is not flat."""
    torch.manual_seed(0)
    name, more = KINDS[kind]
    backbone = create(name, **{**SMALL, **more, **options})
    for block in backbone.network.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.4)
        nn.init.normal_(block.attn.qkv.bias, std=0.4)
    nn.init.normal_(backbone.network.cls_token)
    return backbone


def ts_cam(kind="plain", **options):
    return TSCAM(transformer(kind, **options), CLASSES)


def pictures(n=3, height=32, width=32):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def unfused(network, inputs):
    """The attention matrices Float[B,H,N,N] of all blocks, caught where timm drops some of them; and the tokens."""
    matrices = []
    for block in network.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, given, __: matrices.append(given[0]))
    tokens = network.forward_features(inputs)
    return matrices, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_timms_own_matrices(kind):
    backbone = transformer(kind).eval()
    inputs = backbone.normalize(pictures())
    with torch.no_grad(), class_rows(backbone.network.blocks) as rows:
        plain = backbone.network.forward_features(inputs)
    assert not any(part._forward_hooks for part in backbone.modules())
    matrices, tokens = unfused(backbone.network, inputs)
    assert len(rows) == len(matrices) == 4
    for row, matrix in zip(rows, matrices, strict=True):
        torch.testing.assert_close(row, matrix[:, :, 0])
    assert rows[0].std(-1).max() > 0.02  # they are not flat
    torch.testing.assert_close(plain, tokens)


def test_rows_take_gradients_and_some_blocks():
    backbone = transformer()
    with class_rows(backbone.network.blocks[2:]) as rows:
        backbone(pictures())
    assert len(rows) == 2
    rows[-1][..., 1].sum().backward()
    assert backbone.network.cls_token.grad.any() and not backbone.network.blocks[3].attn.proj.weight.grad


def test_roll_up_by_hand():
    first = torch.tensor([[[0.2, 0.8], [0.6, 0.4]]])  # [1,2,2]: heads average to .4, .6
    second = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # .5, .5
    torch.testing.assert_close(roll_up([first, second]), torch.tensor([[0.9, 1.1]]))


def test_couple_by_hand():
    attention = torch.tensor([[[1.0, 2.0]], [[3.0, 0.5]]])  # [2,1,2]
    semantics = torch.tensor([[[[1.0, 1.0]], [[-1.0, 4.0]]], [[[2.0, 2.0]], [[9.0, 9.0]]]])  # [2,2,1,2]
    assert couple(attention, semantics, torch.tensor([1, 0])).tolist() == [[[-1, 8]], [[6, 1]]]


@torch.no_grad()
def slow(model, images, labels):
    """Logits and maps, picture by picture and patch by patch."""
    network, prefix = model.network, model.network.num_prefix_tokens
    inputs = model.backbone.normalize(images)
    matrices, tokens = unfused(network, inputs)
    height, width = (side // 8 for side in images.shape[2:])
    logits, maps = [], []
    for b in range(len(images)):
        grid = torch.zeros(1, 24, height, width)
        looked = torch.zeros(height, width)
        for y in range(height):
            for x in range(width):
                place = prefix + y * width + x
                grid[0, :, y, x] = tokens[b, place]
                looked[y, x] = sum(matrix[b, :, 0, place].mean() for matrix in matrices)
        semantics = F.conv2d(grid, model.head.weight, model.head.bias, padding=1)[0]  # [K,h,w]
        logits.append(semantics.mean((1, 2)))
        maps.append(looked * semantics[logits[-1].argmax() if labels is None else labels[b]])
    return torch.stack(logits), torch.stack(maps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [None, torch.tensor([4, 0, 2])])
@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
def test_the_method_patch_by_patch(kind, labels, size):
    model = ts_cam(kind)
    found = model.localize(pictures(3, *size), labels)
    logits, maps = slow(model.eval(), pictures(3, *size), labels)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.maps, maps, atol=1e-5, rtol=1e-4)
    assert found.maps.shape == (3, size[0] // 8, size[1] // 8)


def test_localizing_does_not_depend_on_the_mode_and_leaves_it():
    model = ts_cam(drop_path_rate=0.5).train()
    torch.testing.assert_close(model.localize(pictures()).maps, model.eval().localize(pictures()).maps)
    model.train().localize(pictures())
    assert model.training and not any(part._forward_hooks for part in model.modules())


def test_the_loss_is_cross_entropy_of_the_plain_transformer():
    model, labels = ts_cam().eval(), torch.tensor([4, 0, 2])
    losses = model.losses({"image": pictures(), "label": labels})
    assert losses["classification"].item() == pytest.approx(
        F.cross_entropy(model.localize(pictures()).logits, labels).item()
    )
    losses["classification"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_token_alone_place_by_place(kind):
    """Its logits are timm's own, and its map has no class."""
    model = ClassToken(transformer(kind), CLASSES)
    found = model.localize(pictures(3, 40, 32), torch.tensor([4, 0, 2]))
    matrices, tokens = unfused(model.eval().network, model.backbone.normalize(pictures(3, 40, 32)))
    torch.testing.assert_close(found.logits, F.linear(tokens[:, 0], model.head.weight, model.head.bias))
    expected = torch.zeros(3, 5, 4)
    for place in range(20):
        column = model.network.num_prefix_tokens + place
        expected[:, place // 4, place % 4] = sum(matrix[:, :, 0, column].mean(1) for matrix in matrices)
    torch.testing.assert_close(found.maps, expected)
    assert not model.uses_labels


def test_the_class_token_learns_as_a_classifier_does():
    model = ClassToken(transformer(), CLASSES)
    (loss,) = model.losses({"image": pictures(), "label": torch.tensor([4, 0, 2])}).values()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(RecipeError, match="test_resnet is no VisionTransformer"):
        ClassToken(create("test_resnet"), CLASSES)


def test_weight_decay_falls_on_matrices_and_kernels_alone():
    model = ts_cam("registers")
    groups = [group for group in model.param_groups(SimpleNamespace(head_rate=10.0)) if group["params"]]
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {names[p] for group in groups if "weight_decay" not in group for p in group["params"]}
    spared = {names[p] for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert decayed | spared == set(names.values()) and not decayed & spared
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    tokens = {f"backbone.network.{name}" for name in ("cls_token", "reg_token", "pos_embed")}
    assert tokens <= spared and "head.bias" in spared and "head.weight" in decayed
    assert {g["lr_scale"] for g in groups if model.head.weight in set(g["params"])} == {10.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("swin_tiny_patch4_window7_224", {}),
        ("vit_tiny_patch16_224", {**SMALL, "class_token": False, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}),  # its norm comes after pooling
        ("vit_relpos_small_patch16_224", {}),
    ],
)
def test_other_backbones_are_refused(name, options):
    with pytest.raises(RecipeError, match=f"{name} is no VisionTransformer of timm with a class token"):
        TSCAM(create(name, **options), CLASSES)


def test_the_final_tokens_must_be_asked_for():
    with pytest.raises(RecipeError, match="stages=\\('last',\\)"):
        TSCAM(transformer(stages=("stage2",)), CLASSES)


class Corner:
    """Says of each picture how bright the corners and the middle of its red channel are."""

    def localize(self, images):
        red = images[:, 0]
        logits = torch.stack([red[:, 0, 0], red[:, -1, -1], red.mean((1, 2))], 1)
        return Localization(10 * logits, red)


def test_ten_crops_by_hand():
    images = pictures(2, 6, 8)
    crops = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]  # top and left of crops of 4
    for image, found in zip(images, ten_crop_probabilities(Corner(), images, 4), strict=True):
        views = [image[:, y : y + 4, x : x + 4] for y, x in crops]
        views += [view.flip(2) for view in views]
        expected = sum(Corner().localize(view[None]).logits.softmax(1)[0] for view in views) / 10
        torch.testing.assert_close(found, expected)


def test_a_transformer_of_224_has_a_map_of_14():
    found = TSCAM(create("deit_tiny_patch16_224", depth=2), 3).localize(pictures(1, 224, 224))
    assert found.maps.shape == (1, 14, 14)


# --- from a recipe


def recipe(method, **args):
    backbone = {"name": "vit_tiny_patch16_224", "stages": ["last"], "drop_path_rate": 0.1, **SMALL}
    stage = {"name": "only", "method": method, "args": args, "backbone": backbone, "epochs": 1, "batch_size": 6}
    return Recipe(
        name="t",
        data={"name": "scenes", "size": 32, "options": {"n": 12, "classes": 4}},
        stages=[{**stage, "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}}],
        evaluate={"args": {"resize": 32, "tau": "cross-fit", "taus": 20}, "options": {"n": 6}},
    )


@pytest.mark.parametrize(("method", "args"), [("ts-cam", {}), ("sat", {"blocks": 2}), ("class-token", {}), ("cam", {})])
def test_a_recipe_trains_saves_and_measures(tmp_path, method, args):
    found = engine.run(recipe(method, **args), tmp_path, device="cpu", progress=False)
    again = engine.run(recipe(method, **args), tmp_path, device="cpu", progress=False, train=False)
    assert again.evaluator.compute() == found.evaluator.compute() and found.evaluator.compute().n == 6


def test_a_mistyped_argument_is_named():
    data = load("scenes", "train", size=32, n=8, classes=4)
    with pytest.raises(RecipeError, match="did you mean 'kernel'"):
        engine.build(recipe("sat", kernl="code").stages[0], data)


def test_it_learns_squares():
    torch.manual_seed(0)
    backbone = create("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2)
    training = engine.Training(epochs=30, batch_size=24, optimizer={"name": "adamw", "lr": 3e-3})
    history = engine.fit(TSCAM(backbone, 3), Squares(48), training, progress=False)
    assert history.losses()[-1] < 0.3 < history.losses()[0]
