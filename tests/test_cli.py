"""The command `wsol`, from end to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from wsol_lib import cli, grid
from wsol_lib.data.geometry import Frame
from wsol_lib.engine import make_protocol
from wsol_lib.photo import class_number, keep_aspect, open_photo
from wsol_lib.recipe import load_recipe, recipe_names
from wsol_lib.types import DataCorrupt, DataMissing, RecipeError, WsolError

runner = CliRunner()
SMALL = ["--set", "data.options.n=32", "--set", "evaluate.options.n=12", "--set", "stages.0.epochs=1"]


def wsol(*arguments, code=0):
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def photo(tmp_path):
    from skimage.data import chelsea

    path = tmp_path / "cat.jpg"
    Image.fromarray(chelsea()).save(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run; more runs lie beside it later."""
    runs = tmp_path_factory.mktemp("runs")
    wsol("train", "smoke", "--out", runs, "--device", "cpu", *SMALL)
    (folder,) = runs.glob("smoke-*")
    return folder


def test_help_loads_no_torch():
    code = "import sys; from wsol_lib.cli import app\ntry: app(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "predict" in done.stdout and "compare" in done.stdout


def test_recipes_are_listed_and_shown():
    assert wsol("recipes", "list").output.split() == recipe_names()
    assert "name: scenes/cam" in wsol("recipes", "show", "scenes/cam").output


def test_a_mistake_is_one_sentence_and_exit_status_2(tmp_path):
    result = wsol("train", "scenes/cma", code=2)
    assert result.stderr.strip() == "Error: there is no recipe 'scenes/cma'; did you mean 'scenes/cam'?"
    result = wsol("train", "smoke", "--set", "stages.0.epoch=3", "--out", tmp_path, code=2)
    assert "did you mean 'epochs'" in result.stderr and "Traceback" not in result.output
    assert "not trained" in wsol("evaluate", "smoke", "--out", tmp_path, code=2).stderr


def test_the_protocol_in_the_readme_fits_its_recipe():
    readme = (cli.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    ((name, protocol),) = re.findall(r"^wsol evaluate (\S+) --protocol (\S+)", readme, re.M)
    assert make_protocol(load_recipe(name, [f"evaluate.protocol={protocol}"]).evaluate).side == 64
    with pytest.raises(RecipeError, match="crop of 224 pixels does not fit"):
        make_protocol(load_recipe(name, ["evaluate.protocol=sat"]).evaluate)


def test_data_is_handed_on():
    assert "scenes" in wsol("data", "list").output
    assert wsol("data", "--help").output


@pytest.mark.slow
def test_train_measures_and_evaluate_reads_the_run(trained):
    written = json.loads((trained / "results.json").read_text())
    assert written["n"] == 12
    again = wsol("train", "smoke", "--out", trained.parent, "--device", "cpu", *SMALL)
    assert "centred Gaussian" in again.output and str(trained) in again.output
    measured = json.loads(wsol("evaluate", trained, "--limit", 5, "--device", "cpu", "--json").output)
    assert measured["n"] == 5 and measured["recipe"]["data"] == written["recipe"]["data"]
    other = wsol("evaluate", trained, "--protocol", "ted-loc", "--device", "cpu")
    assert "protocol ted-loc" in other.output
    assert "did you mean 'psol'" in wsol("evaluate", trained, "--protocol", "pso", code=2).stderr


@pytest.mark.slow
def test_predict_with_a_trained_run(trained, photo):
    found = json.loads(wsol("predict", photo, "--run", trained, "--json", "--top", 2).output)
    assert len(found[0]["top"]) == 2


@pytest.mark.slow
def test_a_trained_run_sees_all_of_a_photo_even_where_its_protocol_crops(trained):
    contents = json.loads((trained / "results.json").read_text())
    contents["recipe"]["evaluate"]["args"] = {"resize": 64, "crop": 48}
    cropped = trained.with_name("cropped")
    cropped.mkdir()
    (cropped / "results.json").write_text(json.dumps(contents))
    assert cli.trained_network(str(cropped), trained.parent)[2]((300, 200)) == Frame(48, 48)


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wsol_lib"]
    command += ["train", "smoke", "--device", "cpu", "--out", str(tmp_path), *SMALL]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results:") == 1
    (results,) = tmp_path.glob("smoke-*/results.json")
    written = json.loads(results.read_text())
    assert written["n"] == 12 and written["hardware"]["processes"] == 2
    alone = json.loads(wsol("evaluate", results.parent, "--out", tmp_path, "--device", "cpu", "--json").stdout)
    for score in ("gt_known", "pxap", "piou"):
        assert written["scores"][score] == pytest.approx(alone["scores"][score], abs=1e-3)


@pytest.mark.slow
def test_predict_draws_names_and_skips(photo, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photo.read_bytes()[:2000])
    result = wsol("predict", photo, bad, tmp_path / "absent.png", code=1)
    assert "Egyptian cat" in result.stdout and len(re.findall(r"^ +[\d.]+ %", result.stdout, re.M)) == 5
    assert "hardly believes" not in result.stdout
    assert "bad.jpg" in result.stderr and "absent.png" in result.stderr
    with Image.open(tmp_path / "cat.wsol.png") as figure:
        assert figure.width > 600


@pytest.mark.slow
def test_predict_json_boxes_lie_in_the_upright_photo(photo, tmp_path):
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6  # the camera says: turn by 90 degrees
    with Image.open(photo) as upright:
        upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
        width, height = upright.size
    output = wsol("predict", photo, turned, "--class", "tabby", "--json", "--out", tmp_path / "figures").output
    one, two = json.loads(output)
    assert one["class"] == two["class"] == "tabby, tabby cat"
    assert one["box"] == pytest.approx(two["box"], abs=12)
    x0, y0, x1, y1 = one["box"]
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["cat.wsol.png", "turned.wsol.png"]


@pytest.mark.slow
def test_predict_says_how_likely_the_asked_class_is(photo):
    output = wsol("predict", photo, "--class", "espresso").stdout
    assert "espresso (0.0 %) in the box" in output and "hardly believes" in output


def test_a_likely_class_comes_without_a_warning():
    found = {"image": "a.jpg", "class": "cat, tabby", "probability": 0.01, "box": [0, 1, 2, 3]}
    found |= {"top": [], "figure": "f"}
    assert cli.sentence(found).splitlines() == ["a.jpg: cat (1.0 %) in the box [0, 1, 2, 3]", "  figure: f"]
    assert "hardly believes" in cli.sentence({**found, "probability": 0.009})


def test_seeds_are_numbers(tmp_path):
    assert "cannot read the seeds" in wsol("compare", "smoke", "--to", tmp_path / "a", "--seeds", "0,,1", code=2).stderr


def test_predict_refuses_an_unknown_class(photo):
    assert "did you mean 'tabby cat'" in wsol("predict", photo, "--class", "taby cat", code=2).stderr


def test_photos_are_read_or_refused(tmp_path):
    grey = tmp_path / "grey.png"
    Image.new("L", (9, 5), 7).save(grey)
    assert open_photo(grey).mode == "RGB"
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(DataCorrupt, match=r"text\.jpg"):
        open_photo(tmp_path / "text.jpg")
    with pytest.raises(DataMissing):
        open_photo(tmp_path / "none.jpg")


@pytest.mark.parametrize("size", [(224, 224), (451, 300), (3000, 4000), (10, 2000), (64, 64)])
def test_keep_aspect_bounds_both_sides(size):
    frame = keep_aspect(size)
    assert frame.width % 32 == frame.height % 32 == 0
    assert 224 <= min(frame.width, frame.height) <= max(frame.width, frame.height) <= 3 * 224
    if max(size) < 2 * min(size):
        assert frame.width / frame.height == pytest.approx(size[0] / size[1], rel=0.08)


def test_class_numbers():
    classes = ("tabby, tabby cat", "crane")
    assert [class_number(name, classes) for name in ("Tabby Cat", "tabby", "1", " crane ")] == [0, 0, 1, 1]
    with pytest.raises(WsolError, match="no class 'dog'"):
        class_number("dog", classes)


def test_figures_of_photos_with_one_name_are_numbered(tmp_path):
    taken = []
    for photo in ("a/x.jpg", "b/x.jpg", "x.png"):
        taken.append(str(cli.figure_path(cli.Path(photo), tmp_path, taken)))
    assert [cli.Path(path).name for path in taken] == ["x.wsol.png", "x-2.wsol.png", "x-3.wsol.png"]


# --- compare


def test_axes_and_cells():
    assert grid.axis("a.b=0,0.5,[1,2]") == ("a.b", ["0", "0.5", "[1,2]"])
    with pytest.raises(RecipeError):
        grid.axis("a.b")
    chosen = list(grid.cells(["smoke"], [], {"data.options.n": ["32", "64"]}, [0, 1, 2]))
    assert len(chosen) == 6
    assert chosen[4][0] == {"recipe": "smoke", "data.options.n": "64"}
    assert (chosen[4][1].seed, chosen[4][1].data.options["n"]) == (1, 64)


def test_half_width_is_students():
    assert grid.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 * 1 / 3**0.5, rel=1e-5)
    assert grid.half_width([4.0]) is None
    assert grid.told(np.array([1.0, 2.0, 3.0])) == "  2.0 ±  2.5"


def test_a_score_table_begins_with_the_floors_and_gives_intervals_to_what_was_measured():
    def scores(gt_known):
        return {"max_box_acc": 30, "max_box_acc_v2": 20, "gt_known": gt_known, "top1_loc": 5}

    cell = {
        "data": "birds test", "n": 7, "floors": {"full box": scores(21)}, "scores": scores(40),
        "intervals": {"gt_known": [35.04, 45]},
    }  # fmt: skip
    first, _, floor, cam, mask = grid.score_table({"CAM": cell, "mask": {**cell, "scores": scores(60)}}).splitlines()
    assert first == "birds test, n = 7"
    assert floor.split() == ["full", "box", "30.00", "20.00", "21.00"]
    assert cam.split() == ["CAM", "30.00", "20.00", "40.00", "[35.0,", "45.0]", "5.00"]
    assert mask.split()[3] == "60.00"
    nameless = grid.score_table({"mask": {**cell, "scores": {**scores(60), "top1_loc": None}}}).splitlines()[-1]
    assert nameless.split() == ["mask", "30.00", "20.00", "60.00", "[35.0,", "45.0]"]
    assert list(grid.with_floors({"CAM": cell})) == ["full box", "CAM"]


def test_scores_of_one_setting_come_seed_by_seed_with_their_floors(monkeypatch):
    def cell(seed, setting, gt_known):
        scores = {"gt_known": gt_known, "top1_cls": None}
        return {"seed": seed, "setting": setting, "scores": scores, "floors": {"full box": {"gt_known": 1.0 + seed}}}

    cells = [cell(1, {"a": "x"}, 20.0), cell(0, {"a": "x"}, 10.0), cell(0, {"a": "x", "b": "y"}, 90.0)]
    monkeypatch.setattr(grid, "read", lambda name: {"cells": dict(enumerate(cells))})
    found = grid.over_seeds("any", {"a": "x"})
    assert found["gt_known"].tolist() == [10.0, 20.0]
    assert found["full box gt_known"].tolist() == [1.0, 2.0]
    assert np.isnan(found["top1_cls"]).all()
    assert grid.over_seeds("any", {"a": "z"}) == {}


def test_compare_skips_finished_cells_and_sums_up(tmp_path, monkeypatch):
    ran = []

    class Result:
        def __init__(self, recipe):
            scores = dict.fromkeys(grid.SCORES, 10.0 * recipe.seed) | {"top1_cls": None}
            self.results = {"scores": scores, "seed": recipe.seed, "recipe": recipe.model_dump(mode="json")}

    def run(recipe, *args, **options):
        ran.append(recipe.seed)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return Result(recipe)

    monkeypatch.setattr(grid, "run", run)
    chosen = [({"recipe": "smoke"}, load_recipe("smoke", [f"seed={seed}"])) for seed in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        grid.compare(chosen, tmp_path / "grid.json")
    summary = grid.compare(chosen, tmp_path / "grid.json")["summary"]
    assert ran == [1, 2, 2, 3]
    assert summary[0]["seeds"] == [1, 2, 3] and summary[0]["scores"]["gt_known"]["mean"] == 20
    assert "top1_cls" not in summary[0]["scores"]
    assert json.loads((tmp_path / "grid.json").read_text())["summary"] == summary
    assert summary[0]["scores"]["pxap"]["mean"] == summary[0]["scores"]["piou"]["mean"] == 20
    other = [({"recipe": "smoke"}, load_recipe("smoke", ["seed=1", "stages.0.epochs=5"]))]
    both = grid.compare(other, tmp_path / "grid.json")["summary"]
    assert [row["seeds"] for row in both] == [[1, 2, 3], [1]]


def test_a_comparison_is_stored_and_read_again_and_older_ones_may_lack_scores(tmp_path):
    def cell(seed, **scores):
        return {"setting": {"recipe": "x"}, "recipe": {"seed": seed}, "seed": seed, "scores": scores}

    finished = {str(seed): cell(seed, gt_known=10.0 * seed, pxap=50.0 + seed) for seed in (1, 2)}
    grid.store(tmp_path / "new" / "grid.json", finished)
    stored = json.loads((tmp_path / "new" / "grid.json").read_text())
    assert stored["cells"] == finished and stored["summary"] == grid.summarise(finished.values())
    (row,) = stored["summary"]
    assert {name: score["mean"] for name, score in row["scores"].items()} == {"gt_known": 15, "pxap": 51.5}
    assert row["scores"]["pxap"]["half_width"] == pytest.approx(12.706205 * 0.5, rel=1e-5)
    assert "pxap 51.5 ± 6.4" in cli.summary_line(row)
    (old,) = grid.summarise([cell(1, gt_known=10.0), cell(2, gt_known=20.0, pxap=50.0)])
    assert list(old["scores"]) == ["gt_known"]


@pytest.mark.parametrize(("tau", "more"), [("best", "gt_known, "), ("cross-fit", "")])
def test_the_table_shows_pixel_scores_where_they_are_known_and_names_the_upper_bounds(tau, more):
    known = dict.fromkeys(("gt_known", "max_box_acc", "max_box_acc_v2", "top1_loc", "top5_loc", "top1_cls"), 12.5)
    results = {"name": "x", "data": "d", "n": 1, "recipe": {"evaluate": {"protocol": "p"}}, "protocol": {"tau": tau}}
    floor = dict.fromkeys(known, 2.5)
    pixels, none = {"pxap": 71.25, "piou": 33.125}, {"pxap": None, "piou": None}
    shown = cli.table({**results, "scores": known | pixels, "floors": {"full box": floor | none}}).splitlines()
    assert shown[1].split()[-2:] == ["pxap", "piou"]
    assert shown[2].split()[-2:] == ["71.25", "33.12"] and shown[3].split()[-2:] == ["-", "-"]
    assert f": {more}max_box_acc, max_box_acc_v2, " in shown[-1] and shown[-1].endswith("piou")
    bare = cli.table({**results, "scores": known | none, "floors": {"full box": floor | none}})
    assert "pxap" not in bare and "piou" not in bare


@pytest.mark.slow
def test_compare_from_the_command_line(tmp_path):
    file = tmp_path / "results.json"
    arguments = [
        "compare",
        "smoke",
        "--to",
        file,
        "--seeds",
        "0,1",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        *SMALL,
    ]
    assert "(2 seeds)" in wsol(*arguments).output
    before = file.stat().st_mtime_ns
    assert "±" in wsol(*arguments).output
    assert file.stat().st_mtime_ns == before
    assert "cannot read the seeds" in wsol("compare", "smoke", "--to", file, "--seeds", "a", code=2).stderr


def test_the_default_network_knows_a_thousand_classes():
    localizer, classes, frame = cli.default_network()
    assert len(classes) == 1000 and frame is None
    assert localizer.eval().localize(torch.rand(1, 3, 224, 224)).logits.shape == (1, 1000)
