"""The tool that plays the pointing game with runs on scenes."""

from __future__ import annotations

from tools.pointing import point
from wsol_lib import engine, maps


def test_a_run_points_where_its_maps_are_highest(tmp_path):
    recipe = engine.load_recipe("smoke", ["stages.cam.epochs=1", "data.options.n=32", "evaluate.options.n=24"])
    found = point(recipe, tmp_path)
    scenes, _ = engine.evaluation_data(recipe)
    localizer = engine.run(recipe, tmp_path, progress=False).localizer
    hits, middle = 0, 0
    for i in range(len(scenes)):
        item = scenes[i]
        heat = localizer.localize(item["image"][None], scenes.labels[i : i + 1]).maps
        y, x = divmod(int(maps.resize(heat, 64).flatten().argmax()), 64)
        hits += int(item["mask"][y, x])
        middle += int(item["mask"][32, 32])
    assert abs(found["scores"]["pointing"] - 100 * hits / 24) < 5  # one picture may be rounded otherwise
    assert found["floors"]["middle of the picture"]["pointing"] == 100 * middle / 24
    assert found["seed"] == recipe.seed
