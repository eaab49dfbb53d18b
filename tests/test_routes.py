"""The tool that reads one trained method in several ways."""

from __future__ import annotations

import torch

from tools.routes import Named, routes
from wsol_lib import engine

SMALL = ["data.options.n=32", "evaluate.options.n=24", "evaluate.args.tau=0.3"]


def test_a_clip_is_read_with_the_label_and_without(tmp_path):
    recipe = engine.load_recipe("scenes/clip-es", [*SMALL, "stages.0.args.kind=vanilla"])
    found = routes(recipe, tmp_path)
    run = engine.run(recipe, tmp_path, progress=False)
    assert run.results["scores"].items() <= found["scores"].items() and "anchors gt_known" not in found["scores"]
    scenes, _ = engine.evaluation_data(recipe)
    images = torch.stack([scenes[i]["image"] for i in range(4)])
    told = run.localizer.localize(images, run.localizer.localize(images).logits.argmax(1))
    torch.testing.assert_close(Named(run.localizer).localize(images, scenes.labels[:4]).maps, told.maps)


def test_the_readings_of_ted_loc_share_one_training(tmp_path):
    recipe = engine.load_recipe("scenes/ted-loc", [*SMALL, "stages.ted-loc.epochs=1"])
    found = routes(recipe, tmp_path)
    run = engine.run(recipe, tmp_path, train=False, progress=False)
    assert run.results["scores"].items() <= found["scores"].items()
    run.localizer.route = "anchors"
    dataset, protocol = engine.evaluation_data(recipe)
    judge = engine.evaluate(run.localizer, dataset, protocol, progress=False)
    assert found["scores"]["anchors gt_known"] == judge.compute().gt_known
    assert {"named gt_known", "named top1_loc", "anchors pxap"} <= found["scores"].keys()
