"""The tool that trains a small network once and keeps its weights."""

from __future__ import annotations

import json

import torch

from tools.pretrain import main
from wsol_lib import backbones

SIZE = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4}


def test_weights_are_kept_as_recipes_name_them(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "OWN_WEIGHTS", tmp_path / "weights")
    small = ["data.options.n=80", "evaluate.options.n=8", "stages.vit.epochs=1", "stages.vit.batch_size=40"]
    main("scenes-vit", to=tmp_path / "weights", overrides=small, out=tmp_path / "runs")
    kept = backbones.create("vit_tiny_patch16_224", weights="wsol:scenes-vit", **SIZE)
    fresh = backbones.create("vit_tiny_patch16_224", **SIZE)
    assert kept(torch.rand(1, 3, 64, 64))["last"].shape == fresh(torch.rand(1, 3, 64, 64))["last"].shape
    noted = json.loads((tmp_path / "weights" / "scenes-vit.json").read_text())
    assert noted["recipe"]["data"]["options"]["world"] == 1 and "commit" in noted and "gt_known" in noted["scores"]
