"""C2AM: its terms against loops, its votes, and that it learns to tell an object from its ground."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from wsol_lib import engine
from wsol_lib.backbones import create
from wsol_lib.methods.c2am import (
    C2AM,
    border_share,
    contrast,
    cosines,
    negative_loss,
    positive_loss,
    split_descriptors,
)
from wsol_lib.methods.cam import CAM
from wsol_lib.training import Training, fit
from wsol_lib.types import RecipeError

STAGES = ("stage3", "last")


def small(**options):
    torch.manual_seed(0)
    return C2AM(create("test_resnet", stages=STAGES), classes=3, **options)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- the terms


def test_descriptors_are_divided_by_the_size_of_the_map():
    features = torch.tensor([[[[4.0, 8.0]], [[2.0, 0.0]]]])  # [1,2,1,2]
    foreground = torch.tensor([[[1.0, 0.25]]])
    f, b = split_descriptors(features, foreground)
    assert f.tolist() == [[3, 1]]  # (4 + 8/4) / 2 and 2 / 2; by the sum of P it were 4.8 and 1.6
    assert b.tolist() == [[3, 0]]


def test_cosines_are_cut():
    rows = torch.tensor([[1.0, 0], [3, 0], [0, 1], [1, 1]])
    found = cosines(rows[:1], rows)[0].tolist()
    assert found == pytest.approx([0.9995, 0.9995, 0.0005, 0.5**0.5])
    assert cosines(torch.zeros(1, 2), rows).tolist() == [pytest.approx([0.0005] * 4)]


def test_two_pictures_by_hand():
    """Foregrounds at 60 degrees, backgrounds at 0, and 90 or 30 between the two."""
    turn = lambda degrees: [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]  # noqa: E731
    f, b = torch.tensor([turn(0), turn(60)]), torch.tensor([turn(90), turn(90)])
    apart, near = -math.log(1 - 0.0005), -math.log(1 - math.cos(math.radians(30)))
    assert negative_loss(b, f).item() == pytest.approx((2 * apart + 2 * near) / 4, rel=1e-5)
    itself = -math.log(0.9995) * math.exp(0.25)  # rank -1
    other = -math.log(0.5)  # rank 0: weight 1
    assert positive_loss(f, 0.25).item() == pytest.approx((2 * itself + 2 * other) / 4, rel=1e-5)


def slow_positive(rows, alpha):
    n, total = len(rows), 0.0
    for i in range(n):
        like = [min(max(float(rows[i] @ rows[j] / rows[i].norm() / rows[j].norm()), 0.0005), 0.9995) for j in range(n)]
        order = [i, *sorted((j for j in range(n) if j != i), key=lambda j: -like[j])]
        for place, j in enumerate(order):
            total += -math.log(like[j]) * math.exp(-alpha * (place - 1))
    return total / n**2


def slow_negative(b, f):
    terms = [
        -math.log(1 - min(max(float(x @ y / x.norm() / y.norm()), 0.0005), 0.9995))
        for x in b.unbind()
        for y in f.unbind()
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.75])
def test_equal_to_loops(alpha):
    features, foreground = random(5, 7, 3, 4), random(5, 3, 4, seed=1)
    f = torch.stack(
        [sum(foreground[n, y, x] * features[n, :, y, x] for y in range(3) for x in range(4)) / 12 for n in range(5)]
    )
    b = torch.stack(
        [
            sum((1 - foreground[n, y, x]) * features[n, :, y, x] for y in range(3) for x in range(4)) / 12
            for n in range(5)
        ]
    )
    found = {name: loss.item() for name, loss in contrast(features, foreground, alpha).items()}
    expected = {
        "negative": slow_negative(b, f),
        "foreground": slow_positive(f, alpha),
        "background": slow_positive(b, alpha),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_terms_do_not_know_foreground_from_background():
    features, foreground = random(5, 7, 3, 4), random(5, 3, 4, seed=1)
    one, other = contrast(features, foreground), contrast(features, 1 - foreground)
    torch.testing.assert_close(one["negative"], other["negative"])
    torch.testing.assert_close(one["foreground"], other["background"])


def test_the_order_of_pictures_and_the_scale_of_features_do_not_matter():
    features, foreground, order = random(5, 7, 3, 4), random(5, 3, 4, seed=1), torch.tensor([3, 1, 4, 0, 2])
    for name, loss in contrast(features, foreground).items():
        torch.testing.assert_close(loss, contrast(features[order], foreground[order])[name])
        torch.testing.assert_close(loss, contrast(9 * features, foreground)[name])


def test_gradients_are_finite_at_the_ends():
    features = random(3, 4, 2, 2)
    for end in (0.0, 1.0):
        foreground = torch.full((3, 2, 2), end, requires_grad=True)
        sum(contrast(features, foreground).values()).backward()
        assert foreground.grad.isfinite().all()


def test_half_precision_does_not_blur_the_cosines():
    features, foreground = random(4, 64, 3, 3) + 1, random(4, 3, 3, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast(features, foreground)
    for name, loss in contrast(features, foreground).items():
        torch.testing.assert_close(found[name], loss)


# --- votes


def test_the_border_is_the_outermost_ring():
    foreground = torch.zeros(3, 3, 4)
    foreground[0, 1, 1:3] = 1.0  # the two cells that are no border
    foreground[1, 0, :] = 0.6
    foreground[2] = 0.5  # not above a half
    assert border_share(foreground).tolist() == pytest.approx([0, 0.4, 0])
    assert border_share(torch.ones(1, 2, 5)).tolist() == [1]


class Fixed(nn.Module):
    """In the place of the head: the same map for every picture."""

    def __init__(self, foreground):
        super().__init__()
        self.foreground = nn.Parameter(foreground)

    def forward(self, features):
        return self.foreground.expand(len(features), 1, -1, -1)


def test_maps_turn_where_the_border_was_foreground():
    """All pictures vote, and a majority of their shares decides: 2 of border .9 outvote 1 of border 0."""
    model, batch = small().train(), {"image": random(2, 3, 32, 32)}
    inner = torch.full((4, 4), 0.1)
    inner[1:3, 1:3] = 0.9
    for foreground, count, turned in ((inner, 2, False), (1 - inner, 4, False), (1 - inner, 6, True)):
        model.head = Fixed(foreground)
        model.losses(batch)
        model.after_step()
        assert model.border[1] == count
        maps = model.localize(batch["image"]).maps
        torch.testing.assert_close(maps, (1 - foreground if turned else foreground).expand(2, 4, 4))


def test_votes_are_counted_in_training_and_go_into_the_checkpoint(tmp_path):
    model = small()
    batch = {"image": random(4, 3, 32, 32)}
    model.eval().losses(batch)
    model.train()
    for part in batch["image"].split(2):  # two parts of one step
        model.losses({"image": part})
    model.after_step()
    assert model.border[1] == 4
    engine.save(tmp_path / "c2am.safetensors", model)
    other = small()
    engine.restore(tmp_path / "c2am.safetensors", other)
    assert torch.equal(other.border, model.border)


# --- the method


def test_stages_are_joined_at_the_finer_grid():
    model = small().eval()
    with torch.no_grad():
        found, joined = model.backbone(random(2, 3, 64, 96)), model.features(random(2, 3, 64, 96))
    fine, coarse = found["stage3"], found["last"]
    assert joined.shape == (2, fine.shape[1] + coarse.shape[1], *fine.shape[-2:])
    torch.testing.assert_close(joined[:, : fine.shape[1]], fine)
    resized = nn.functional.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(joined[:, fine.shape[1] :], resized)
    maps = model.localize(random(2, 3, 64, 96)).maps
    assert maps.shape == (2, *fine.shape[-2:]) and (maps > 0).all() and (maps < 1).all()


def test_the_code_leaves_batch_norms_alone():
    recipe = SimpleNamespace(head_rate=10.0)
    for reading, norms in (("code", False), ("paper", True)):
        model = small(faithful_to=reading)
        learned = {name for name, p in model.named_parameters() if p.requires_grad}
        assert "head.0.weight" in learned and ("head.1.weight" in learned) == norms
        assert any("bn" in name for name in learned) == norms
        body, head = model.param_groups(recipe)
        assert head["lr_scale"] == 10 and len(head["params"]) == 1 + 2 * norms and body["lr_scale"] == 1
    frozen = small(freeze_backbone=True)
    assert sorted(name for name, p in frozen.named_parameters() if p.requires_grad) == ["head.0.weight"]


def test_it_may_lean_on_a_classifier():
    """Its backbone, frozen, and its logits; nothing of it is in the checkpoint."""
    torch.manual_seed(1)
    classifier = CAM(create("test_resnet", stages=STAGES), 3).eval()
    model, images = C2AM(classifier=classifier, classes=3).eval(), random(2, 3, 32, 32)
    found = model.localize(images)
    torch.testing.assert_close(found.logits, classifier.localize(images).logits)
    assert not [name for name in model.state_dict() if not name.startswith(("head.", "border"))]
    assert torch.equal(model.features(images), C2AM(classifier.network, classes=3).features(images))
    with pytest.raises(RecipeError, match="needs a backbone, or a classifier"):
        C2AM(classes=3)


class Blobs(torch.utils.data.Dataset):
    """Bright squares of one colour on grounds of another, both noisy; of two classes."""

    def __init__(self, n=32, size=32):
        self.masks = torch.zeros(n, size, size, dtype=torch.bool)
        for i in range(n):
            x, y = 6 + (5 * i) % 9, 6 + (7 * i) % 9
            self.masks[i, y : y + 12, x : x + 12] = True
        ground, thing = torch.tensor([0.2, 0.5, 0.2]), torch.tensor([0.9, 0.3, 0.2])
        colours = torch.where(self.masks[:, None], thing[:, None, None], ground[:, None, None])
        self.images = (colours + 0.1 * torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))).clamp(
            0, 1
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": i % 2, "index": i}


def grid(masks, size):
    return nn.functional.adaptive_avg_pool2d(masks[:, None].float(), size)[:, 0] > 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_object_without_labels(seed):
    """Whatever side the head starts on, the foreground is the square after training, and the losses fell."""
    data = Blobs()
    torch.manual_seed(seed)
    backbone = create("test_resnet", stages=("stage2",))
    model = C2AM(backbone, classes=2, freeze_backbone=True)
    history = fit(model, data, Training(epochs=12, batch_size=16, optimizer={"lr": 0.05}), seed=seed, progress=False)
    maps = model.eval().localize(data.images).maps
    inside = grid(data.masks, maps.shape[-2:])
    assert history.losses()[-1] < history.losses()[0]
    assert maps[inside].mean() > maps[~inside].mean() + 0.3
    assert model.border[1] == 12 * 32


def test_a_recipe_trains_it(tmp_path):
    recipe = engine.Recipe(
        name="c2am",
        data={"name": "scenes", "options": {"n": 16}},
        stages=[{
            "name": "c2am", "method": "c2am", "backbone": {"name": "test_resnet", "stages": list(STAGES)},
            "epochs": 1, "batch_size": 8,
        }],
        evaluate={"args": {"resize": 64, "tau": "otsu"}, "options": {"n": 6}},
    )  # fmt: skip
    result = engine.run(recipe, tmp_path, progress=False)
    assert set(result.histories["c2am"].epochs[0]) > {"negative", "foreground", "background"}
    assert not result.localizer.uses_labels


# --- two processes


def batch_of_one():
    return random(8, 5, 3, 3), random(8, 3, 3, seed=1)


def gradient_of(features, foreground):
    logits = foreground.logit().requires_grad_()
    losses = contrast(features, logits.sigmoid())
    sum(losses.values()).backward()
    return torch.stack([*losses.values()]).detach(), logits.grad


def child(rank, folder):
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    losses, gradient = gradient_of(*(part.chunk(2)[rank] for part in batch_of_one()))
    model = small().train()
    model.head = Fixed(torch.full((4, 4), float(rank)))
    model.losses({"image": random(2, 3, 32, 32)})
    model.after_step()
    assert not model.border.requires_grad  # else it would hold the graph of every step
    torch.save({"losses": losses, "gradient": gradient, "border": model.border}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_pairs_reach_over_two_processes(tmp_path):
    """The losses of the whole batch on each rank; gradients twice as large, for the wrapper takes their mean."""
    mp.spawn(child, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    losses, gradient = gradient_of(*batch_of_one())
    for rank in (first, second):
        torch.testing.assert_close(rank["losses"], losses)
        assert rank["border"].tolist() == [2, 4]
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]) / 2, gradient)
