"""CAM as a method: its identities, its place in training, and equality with pytorch-grad-cam on the same network."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
from torch import nn

from wsol_lib import maps
from wsol_lib.backbones import Backbone, create
from wsol_lib.data import scenes
from wsol_lib.methods import METHODS, method
from wsol_lib.methods.cam import CAM, GRADIENT, VARIANTS
from wsol_lib.types import CheckpointError, Localizer, RecipeError

THEIRS = {
    "grad-cam": pytorch_grad_cam.GradCAM,
    "grad-cam++": pytorch_grad_cam.GradCAMPlusPlus,
    "xgrad-cam": pytorch_grad_cam.XGradCAM,
    "layer-cam": pytorch_grad_cam.LayerCAM,
    "hires-cam": pytorch_grad_cam.HiResCAM,
    "score-cam": pytorch_grad_cam.ScoreCAM,
}
LABELS = torch.tensor([2, 0, 4])


def small(**options) -> CAM:
    torch.manual_seed(0)
    return CAM(create("test_resnet", stages=("stage3", "last")), 5, **options).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def relative(ours, theirs) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - np.maximum(theirs, 0)).max() / np.maximum(theirs, 0).max())


def test_the_mean_of_the_map_and_the_bias_are_the_logit(images):
    localizer = small()
    result = localizer.localize(images, LABELS)
    logits = result.maps.mean((1, 2)) + localizer.head.bias[LABELS]
    torch.testing.assert_close(logits, result.logits[torch.arange(3), LABELS])


@pytest.mark.parametrize("variant", ["grad-cam", "hires-cam"])
def test_at_the_pooled_layer_gradient_maps_are_the_positive_part_of_cam_over_the_area(images, variant):
    reference = small().localize(images, LABELS).maps
    drawn = small(variant=variant).localize(images, LABELS).maps
    torch.testing.assert_close(drawn * reference[0].numel(), reference.relu(), rtol=1e-4, atol=1e-6)
    assert (reference < 0).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_labels_the_predicted_class_is_drawn(images, variant):
    localizer = small(variant=variant)
    guess = localizer.localize(images)
    told = localizer.localize(images, guess.logits.argmax(1))
    torch.testing.assert_close(guess.maps, told.maps)
    other = localizer.localize(images, (guess.logits.argmax(1) + 1) % 5)
    assert torch.equal(other.maps, told.maps) == (not localizer.uses_labels)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("freeze", [False, True])
def test_maps_are_the_same_in_every_gradient_mode_and_leave_nothing_behind(images, variant, mode, freeze):
    localizer = small(variant=variant, freeze_backbone=freeze)
    plain = localizer.localize(images, LABELS)
    with mode():
        quiet = localizer.localize(images + 0, LABELS)
    torch.testing.assert_close(quiet.maps, plain.maps)
    assert torch.is_grad_enabled()
    assert plain.maps.grad_fn is None and plain.logits.grad_fn is None
    assert all(p.grad is None for p in localizer.network.parameters())
    assert all(p.grad is None for p in localizer.parameters())


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "cam"])
@pytest.mark.parametrize("stage", ["stage3", "last"])
def test_maps_of_a_batch_are_those_of_its_images(images, variant, stage):
    localizer = small(variant=variant, stage=stage)
    together = localizer.localize(images, LABELS).maps
    alone = torch.cat([localizer.localize(images[i : i + 1], LABELS[i : i + 1]).maps for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)
    assert together.shape == ((3, 8, 12) if stage == "stage3" else (3, 2, 3))


class Whole(nn.Module):
    """The same network by another way: no stages, no leaf, timm's own forward."""

    def __init__(self, localizer: CAM) -> None:
        super().__init__()
        self.backbone, self.head = localizer.network, localizer.head

    def forward(self, inputs):
        out = self.backbone.network.forward_features(inputs)
        return self.head({"last": out})


def their_maps(name, model, layer, inputs, labels, reshape=None):
    """What pytorch-grad-cam's class draws before it resizes and normalises: [B,h,w]."""
    drawn = []
    with THEIRS[name](model=model, target_layers=[layer], reshape_transform=reshape) as tool:
        draw = tool.get_cam_image
        tool.get_cam_image = lambda *args: drawn.append(draw(*args)) or drawn[-1]
        tool(inputs, [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(int(i)) for i in labels])
    return drawn[0]


@pytest.mark.parametrize("variant", THEIRS)
@pytest.mark.parametrize(("stage", "layer"), [("stage3", "layer2"), ("last", "layer4")])
def test_equal_to_pytorch_grad_cam_on_a_residual_network(images, variant, stage, layer):
    localizer = small(variant=variant, stage=stage)
    ours = localizer.localize(images, LABELS).maps
    module = localizer.network.network.get_submodule(layer)
    theirs = their_maps(variant, Whole(localizer), module, localizer.network.normalize(images), LABELS)
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("variant", GRADIENT)
@pytest.mark.parametrize(("stage", "layer"), [("stage4", "blocks.4"), ("last", "bn2")])
def test_equal_to_pytorch_grad_cam_on_lite0(variant, stage, layer):
    backbone = create(weights="lite0-pip", stages=("stage4", "last"))
    localizer = CAM.pretrained(backbone, variant=variant, stage=stage).eval()
    pictures, labels = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1)), torch.tensor([281, 7])
    ours = localizer.localize(pictures, labels).maps
    inputs = backbone.normalize(pictures)
    theirs = their_maps(variant, Whole(localizer), backbone.network.get_submodule(layer), inputs, labels)
    assert relative(ours, theirs) < 1e-5


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Backbone:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model("test_vit", num_classes=5).state_dict(), path)
    return create("test_vit", weights=str(path), stages=("stage3", "logits"))


@pytest.mark.parametrize("variant", THEIRS)
def test_equal_to_pytorch_grad_cam_on_a_vision_transformer(images, vit, variant):
    """Its own classifier reads the class token; a 64 x 96 picture has 4 x 6 patches, after one prefix token."""
    localizer = CAM.pretrained(vit, variant=variant, stage="stage3").eval()

    class Tokens(nn.Module):
        def forward(self, inputs):
            return vit.network.norm(blocks(inputs))[:, 0] @ vit.classifier()[0].T + vit.classifier()[1]

    def blocks(inputs):
        return vit.network.blocks(
            vit.network.norm_pre(vit.network.patch_drop(vit.network._pos_embed(vit.network.patch_embed(inputs))))
        )

    model = Tokens()
    model.vit = vit
    ours = localizer.localize(images, LABELS).maps
    theirs = their_maps(
        variant,
        model,
        vit.network.blocks[2],
        vit.normalize(images),
        LABELS,
        reshape=lambda tokens: tokens[:, 1:].reshape(len(tokens), 4, 6, -1).permute(0, 3, 1, 2),
    )
    assert ours.shape == (3, 4, 6)
    assert relative(ours, theirs) < 1e-5


def test_score_cam_is_one_forward_pass_a_channel(images):
    localizer = small(variant="score-cam")
    backbone = localizer.network
    inputs = backbone.normalize(images)
    activations = backbone.features(inputs)["last"].detach()
    grown = nn.functional.interpolate(activations, inputs.shape[-2:], mode="bilinear", align_corners=True)
    expected = []
    for b in range(len(images)):
        scores = [localizer.head(backbone.features((inputs[b] * maps.normalize(g[None]))[None])) for g in grown[b]]
        weights = torch.cat(scores)[:, LABELS[b]].detach().softmax(0)
        expected.append((weights[:, None, None] * activations[b]).sum(0).relu())
    torch.testing.assert_close(localizer.localize(images, LABELS).maps, torch.stack(expected), rtol=1e-3, atol=1e-6)


def test_pretrained_cuts_the_classes_in_their_order():
    backbone = create(weights="lite0-pip", stages=("last", "logits")).eval()
    indices = torch.tensor([281, 3, 999])
    pictures = torch.rand(2, 3, 64, 64)
    everything = backbone(pictures)["logits"][:, indices]
    own = CAM.pretrained(backbone, indices, variant="grad-cam").eval()
    pooled = CAM.pretrained(create(weights="lite0-pip"), indices).eval()
    torch.testing.assert_close(own.localize(pictures).logits, everything)
    torch.testing.assert_close(pooled.localize(pictures).logits, everything, rtol=1e-4, atol=1e-4)


def test_a_class_token_has_no_cam(vit):
    with pytest.raises(RecipeError, match="the classifier is the backbone's own"):
        CAM.pretrained(vit, variant="cam", stage="stage3")
    with pytest.raises(CheckpointError, match="no pretrained classifier"):
        CAM.pretrained(create("test_resnet"))


def test_wrong_layers_and_variants_are_refused():
    backbone = create("test_resnet", stages=("stage3", "last"))
    with pytest.raises(RecipeError, match="CAM cannot be read at 'stage3', for the classifier pools 'last'"):
        CAM(backbone, 5, stage="stage3")
    with pytest.raises(RecipeError, match=r"returns no map 'stage2': create it with stages=\('stage2', ...\)"):
        CAM(backbone, 5, variant="grad-cam", stage="stage2")
    with pytest.raises(RecipeError, match="no variant 'gradcam' of CAM: choose one of cam, grad-cam"):
        CAM(backbone, 5, variant="gradcam")


def test_cam_may_pool_an_earlier_stage(images):
    localizer = CAM(create("test_resnet", stages=("stage3",)), 5, stage="stage3").eval()
    result = localizer.localize(images, LABELS)
    assert result.maps.shape == (3, 8, 12)
    logits = result.maps.mean((1, 2)) + localizer.head.bias[LABELS]
    torch.testing.assert_close(logits, result.logits[torch.arange(3), LABELS])


def test_it_learns_labels(images):
    localizer = small().train()
    optimizer = torch.optim.Adam(localizer.parameters(), lr=3e-3)
    batch = {"image": images, "label": LABELS, "index": torch.arange(3)}
    losses = []
    for _ in range(12):
        named = localizer(batch)
        assert list(named) == ["classification"]
        optimizer.zero_grad()
        named["classification"].backward()
        optimizer.step()
        losses.append(named["classification"].item())
    assert losses[-1] < 0.3 < 1.0 < losses[0]


def test_a_frozen_backbone_does_not_move(images):
    localizer = small(freeze_backbone=True).train()
    before = {name: value.clone() for name, value in localizer.network.state_dict().items()}
    optimizer = torch.optim.SGD(localizer.parameters(), lr=0.1)
    localizer({"image": images, "label": LABELS})["classification"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in localizer.network.state_dict().items())
    assert not localizer.network.training
    assert sorted(localizer.state_dict()) == ["head.bias", "head.weight"]
    thawed = small().train()
    thawed({"image": images, "label": LABELS})
    assert not all(torch.equal(value, before[name]) for name, value in thawed.network.state_dict().items())


def test_dropout_acts_in_training_only(images):
    localizer = small(dropout=0.9)
    batch = {"image": images, "label": LABELS}
    assert localizer(batch)["classification"] == small()(batch)["classification"]
    localizer.head.train()
    assert localizer(batch)["classification"] != localizer(batch)["classification"]


def test_the_head_may_learn_faster():
    recipe = SimpleNamespace(head_rate=10.0)
    body, head = small().param_groups(recipe)
    assert (body["lr_scale"], head["lr_scale"]) == (1.0, 10.0)
    assert len(head["params"]) == 2 and len(body["params"]) > 20
    assert [group["lr_scale"] for group in small(freeze_backbone=True).param_groups(recipe)] == [10.0]


def test_the_registry_gives_classes_by_name():
    assert method("cam") is CAM
    assert all(issubclass(method(name), Localizer) for name in METHODS)
    with pytest.raises(RecipeError, match="no method 'camm'; did you mean 'cam'"):
        method("camm")
    with pytest.raises(RecipeError, match=r"no method 'zzz' \(there are: .*\bcam, "):
        method("zzz")


def test_a_probe_of_two_classes_has_a_row_for_each():
    data = scenes.make(24, 0, families=1, classes=2, split="train")
    model = CAM.probed(create("test_resnet"), data)
    logits = model.eval().localize(torch.stack([data[i]["image"] for i in range(24)])).logits
    assert logits.shape == (24, 2)
    assert (logits.argmax(1) == data.labels).float().mean() > 0.7


def test_a_probe_needs_a_picture_of_every_class():
    data = scenes.make(24, 0, classes=12, split="train")
    with pytest.raises(ValueError, match="no picture of class"):
        CAM.probed(create("test_resnet"), data.subset([0, 1]))


def test_maps_that_are_already_there_give_the_same_logits():
    small = {"stages": ["last"], "output_stride": 8, "channels": [24, 48, 64, 96], "stem_width": 16}
    own, other = (create("resnet10t", **small).eval() for _ in range(2))
    model, images = CAM(own, 5).eval(), torch.rand(3, 3, 32, 32)
    expected = model.localize(images).logits
    assert torch.equal(model.logits(images, own, own(images)), expected)
    assert torch.equal(model.logits(images, other, other(images)), expected)
