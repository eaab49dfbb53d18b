"""The tool that measures every epoch."""

import pytest

from tools.mask_epochs import observe
from wsol_lib import engine
from wsol_lib.recipe import load_recipe


def test_the_last_epoch_seen_is_the_one_that_the_run_measures(tmp_path):
    recipe = load_recipe("smoke", ["data.options.n=32", "evaluate.options.n=24"])
    found = observe(recipe, 10**6, tmp_path)
    assert len(found["epochs"]) == 2
    assert found["epochs"][-1]["gt_known"] == pytest.approx(found["scores"]["gt_known"])
    assert found["epochs"][-1]["top1_cls"] == pytest.approx(found["scores"]["top1_cls"])


def test_a_run_that_nobody_watched_is_refused(tmp_path):
    recipe = load_recipe("smoke", ["stages.cam.epochs=1", "data.options.n=32", "evaluate.options.n=24"])
    engine.run(recipe, tmp_path, progress=False)
    with pytest.raises(SystemExit, match="give another --out"):
        observe(recipe, 10, tmp_path)
