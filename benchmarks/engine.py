"""Images a second of `engine.fit` against a bare PyTorch loop with the same data, network and optimiser.

Run: python benchmarks/engine.py [--device cuda] [--workers 4]. A ratio of 1 means that the engine costs nothing.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.utils.data import DataLoader

from wsol_lib import setup
from wsol_lib.backbones import create
from wsol_lib.data import collate, load
from wsol_lib.engine import Training, fit
from wsol_lib.methods.cam import CAM


def bare(localizer, data, epochs, batch_size, workers):
    device = next(localizer.parameters()).device
    optimizer = torch.optim.SGD(localizer.parameters(), lr=0.01, momentum=0.9)
    localizer.train()
    for _ in range(epochs):
        loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers, collate_fn=collate, drop_last=True)
        for batch in loader:
            on_device = {key: batch[key].to(device) for key in ("image", "label")}
            optimizer.zero_grad(set_to_none=True)
            sum(localizer.losses(on_device).values()).backward()
            optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()


def engine(localizer, data, epochs, batch_size, workers):
    fit(localizer, data, Training(epochs=epochs, batch_size=batch_size, workers=workers), progress=False)


def rate(loop, make, data, arguments):
    """Images a second of one run."""
    localizer, start = make(), time.perf_counter()
    loop(localizer, data, *arguments)
    return arguments[0] * len(data) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    setup(0, threads=1 if options.device == "cpu" else 2)
    data = load("scenes", "train", size=options.size, n=options.n)

    def make():
        return CAM(create(options.backbone), len(data.classes)).to(options.device)

    arguments = (options.epochs, options.batch_size, options.workers)
    for loop in (bare, engine):
        rate(loop, make, data, arguments)
    # Turn by turn, so that what else the machine does falls on both; the best round is the least disturbed one.
    rounds = [[rate(loop, make, data, arguments) for loop in (bare, engine)] for _ in range(options.rounds)]
    plain, ours = (max(column) for column in zip(*rounds, strict=True))
    print(f"{options.backbone} at {options.size} px on {options.device}, batches of {options.batch_size}")
    print(f"bare loop {plain:8.1f} images/s\nengine    {ours:8.1f} images/s\nratio     {ours / plain:8.3f}")


if __name__ == "__main__":
    main()
