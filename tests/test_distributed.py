"""Functions with one meaning for one process or many; two gloo processes against one."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from toys import Squares, Teacher

from wsol_lib import distributed
from wsol_lib.engine import Training, fit, restore
from wsol_lib.types import Localizer

TRAINING = Training(epochs=2, batch_size=8, optimizer={"lr": 0.1}, schedule={"name": "cosine"}, clip=1.0)
PARTS = (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([8.0]))


class BatchArea(Localizer):
    """A loss on the mean over the whole batch, |mean - target|: it cannot be split into a mean over images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mask = torch.nn.Conv2d(3, 1, 3)
        self.head = torch.nn.Conv2d(3, 3, 1)

    def losses(self, batch):
        area = distributed.global_mean(self.mask(batch["image"]).sigmoid().mean((1, 2, 3)))
        logits = self.head(batch["image"]).mean((2, 3))
        losses = {"area": (area - 0.25).abs(), "classification": F.cross_entropy(logits, batch["label"])}
        red = batch["label"] == 0  # a rank may have none
        return {**losses, "red": distributed.global_mean(logits[red].pow(2).sum(1))}


def together(function, folder, processes=2):
    mp.spawn(child, (function, processes, str(folder)), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def child(rank, function, processes, folder):
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    torch.save(function(rank, Path(folder)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(method, training, out=None):
    history = fit(method, Squares(24), training, out=out)
    flat = torch.cat([p.detach().flatten() for p in method.parameters()])
    return {"weights": flat, "losses": history.losses()}


def everything(rank, folder):
    """All that needs two processes, in one pair of them: starting a pair takes seconds."""
    part = PARTS[rank].clone().requires_grad_()
    distributed.global_mean(part).pow(2).backward()
    empty = torch.ones(2 * rank, requires_grad=True)
    mean_of_half_empty = distributed.global_mean(empty * 3)
    mean_of_half_empty.backward()
    none = distributed.global_mean(torch.zeros(0))
    constant = distributed.global_mean(torch.full((2,), float(rank)))
    constant.backward()
    return {
        "rank": distributed.rank(),
        "world": distributed.world(),
        "sum": distributed.global_sum(torch.tensor([1.0, rank])),
        "mean_gradient": part.grad,
        "weighted": distributed.global_mean(PARTS[rank], weight=torch.ones(len(PARTS[rank])) * (rank + 1)).detach(),
        "half_empty": mean_of_half_empty.detach(),
        "none": none.detach(),
        "gathered": distributed.gather_objects(("rank", rank)),
        "plain": trained(Teacher(), TRAINING, folder),
        "parts": trained(Teacher(), TRAINING.model_copy(update={"accumulate": 2})),
        "area": trained(BatchArea(), TRAINING),
        "norm": trained(Teacher(norm=True).eval_norm(), TRAINING),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return [*together(everything, folder), folder]


@pytest.mark.slow
def test_ranks_know_themselves(both):
    assert [(report["rank"], report["world"]) for report in both[:2]] == [(0, 2), (1, 2)]
    assert both[0]["gathered"] == both[1]["gathered"] == [("rank", 0), ("rank", 1)]
    assert torch.equal(both[1]["sum"], torch.tensor([2.0, 1.0]))


def test_a_lone_process_needs_no_group():
    assert (distributed.rank(), distributed.world(), distributed.gather_objects(3)) == (0, 1, [3])
    x = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert distributed.global_mean(x) == 3 and distributed.global_sum(x) is x
    assert distributed.global_mean(x, weight=torch.tensor([0.0, 1.0, 1.0])) == 4


def test_an_empty_mean_is_0_and_its_gradient_too():
    x = torch.zeros(0, requires_grad=True)
    mean = distributed.global_mean(x)
    mean.backward()
    assert mean == 0 and x.grad.shape == (0,)
    y = torch.ones(3, requires_grad=True)
    distributed.global_mean(y, weight=torch.zeros(3)).backward()
    assert torch.equal(y.grad, torch.zeros(3))


@pytest.mark.slow
def test_global_mean_over_uneven_and_empty_parts(both):
    for report in both[:2]:
        assert report["weighted"] == pytest.approx((1 + 2 + 4 + 2 * 8) / 5)
        assert report["half_empty"] == 3
        assert report["none"] == 0


@pytest.mark.slow
def test_the_mean_gradient_over_ranks_is_that_of_one_process(both):
    # d/dx (mean)^2 = 2 * mean / 4; a distributed wrapper divides by the world size, so a rank's share is twice that
    expected = 2 * (15 / 4) / 4 * 2
    for report in both[:2]:
        assert torch.allclose(report["mean_gradient"], torch.full_like(report["mean_gradient"], expected))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "parts", "area", "norm"])
def test_two_processes_equal_one(both, case):
    method = {"area": BatchArea, "norm": lambda: Teacher(norm=True).eval_norm()}.get(case, Teacher)
    alone = trained(method(), TRAINING)
    for report in both[:2]:
        assert torch.allclose(report[case]["weights"], alone["weights"], atol=1e-6)
        assert report[case]["losses"] == pytest.approx(alone["losses"], abs=1e-6)


@pytest.mark.slow
def test_one_rank_wrote_a_checkpoint_that_one_process_reads(both):
    method = Teacher()
    restore(both[2] / "checkpoint.safetensors", method)
    assert torch.allclose(torch.cat([p.detach().flatten() for p in method.parameters()]), both[0]["plain"]["weights"])


def test_keys_depend_on_every_number_and_on_their_order():
    keys = {distributed.key(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(keys) == 125 and all(0 <= key < 2**63 for key in keys)
    assert distributed.key(1, 23) != distributed.key(12, 3)


def test_seed_all_reaches_every_generator_and_kept_randomness_puts_it_back():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with distributed.kept_randomness():
        draws = []
        for _ in range(2):
            distributed.seed_all(3, "x")
            draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
        assert draws[0] == draws[1]
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
