"""The command `wsol`: data, training, measuring, and a box for your own photograph.

Heavy modules are imported inside the commands, so that `wsol --help` answers at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from wsol_lib import tune_process

if TYPE_CHECKING:
    from wsol_lib.recipe import Recipe

tune_process()


class Group(TyperGroup):
    """The commands; a mistake that the reader can mend becomes one red sentence and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            from wsol_lib.types import WsolError

            if not isinstance(error, WsolError):
                raise
            complain(str(error))
            raise typer.Exit(2) from None


app = typer.Typer(
    name="wsol",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find objects in pictures after learning from labels alone. Try: wsol predict cat.jpg",
)
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with the library.")
app.add_typer(recipes_app, name="recipes")

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of all runs; finished stages in it are not run again.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="Change a key: stages.0.epochs=2. Repeatable.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default CUDA where there is one.")]
Recipes = Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Names or files.")]
To = Annotated[Path, typer.Option("--to", help="The JSON file of all results; cells that it holds are kept.")]
Vary = Annotated[list[str] | None, typer.Option("--vary", help="An axis: data.options.part_size=2,4. Repeatable.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
UNLIKELY = 0.01  # below this probability of a class `predict` warns of its box
AT_TAU = ("gt_known", "top1_loc", "top5_loc")  # measured at the threshold of the protocol's policy
UPPER_BOUNDS = ("max_box_acc", "max_box_acc_v2", "piou")  # choose theirs on the measured pictures under any protocol


def grid_command(measure: Callable[[Recipe, Path], dict[str, Any]], text: str) -> Callable[..., None]:
    """A command that measures recipes at several settings with several seeds, into one file; `text` is its help.

    Args:
        measure: what is noted of a recipe, given the folder of all runs.
    """

    def main(
        recipes: Recipes,
        to: To,
        seeds: Seeds = "0",
        overrides: Set = None,
        vary: Vary = None,
        out: Out = Path("runs"),
    ) -> None:
        from wsol_lib import grid

        grid.collect(grid.asked(recipes, overrides or (), vary or (), seeds), to, lambda recipe: measure(recipe, out))

    main.__doc__ = text
    return main


def complain(text: str) -> None:
    """Say what went wrong, in red, on the error stream."""
    typer.secho(f"Error: {text}", fg="red", err=True)


@app.command(
    "data",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def data(ctx: typer.Context) -> None:
    """Data sets: list, get, verify, where, subset."""
    from wsol_lib.data.commands import app as data_app

    status = typer.main.get_command(data_app)(ctx.args or ["--help"], prog_name="wsol data", standalone_mode=False)
    if status:
        raise typer.Exit(status)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (wsol recipes list) or a YAML file.")],
    overrides: Set = None,
    out: Out = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Train anew, or go on where a run stopped.")] = False,
    device: Device = None,
) -> None:
    """Train the stages of a recipe and measure the result. Run it again after an interruption: it goes on.

    With several processes: torchrun --nproc-per-node 4 -m wsol_lib train RECIPE
    """
    from wsol_lib.engine import load_recipe, run

    result = run(load_recipe(recipe, overrides or ()), out, device=device, fresh=fresh)
    for name, history in result.histories.items():
        if history.epochs:
            kept = "" if history.kept_epoch is None else f", kept epoch {history.kept_epoch + 1}"
            say(f"{name}: {len(history.epochs)} epochs, last loss {history.epochs[-1]['total']:.4f}{kept}")
    if result.results:
        say(table(result.results))
        say(f"results: {result.folder / 'results.json'}")


@app.command()
def evaluate(
    source: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="Folder of a run, or a recipe that is trained.")],
    protocol: Annotated[str | None, typer.Option(help="Name of a protocol.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many pictures, evenly spread.")] = None,
    overrides: Set = None,
    out: Out = Path("runs"),
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained recipe, perhaps by another protocol or on another split."""
    from wsol_lib.engine import run
    from wsol_lib.types import RecipeError

    asked = {"evaluate.protocol": protocol, "evaluate.split": split, "evaluate.limit": limit}
    changes = [f"{key}={value}" for key, value in asked.items() if value is not None]
    recipe, root = recipe_of(source, [*(overrides or ()), *changes], out)
    result = run(recipe, root, device=device, train=False, progress=not as_json)
    if result.results is None:
        raise RecipeError(f"{recipe.name} measures nothing: give it the key evaluate, or a --protocol")
    say(json.dumps(result.results, indent=2) if as_json else table(result.results))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs: JPEG, PNG, ...")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the figures.")] = None,
    name: Annotated[str | None, typer.Option("--class", "-c", help="Which class to look for.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes to name.")] = 5,
    source: Annotated[str | None, typer.Option("--run", "--recipe", help="A trained recipe or run instead.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, for --recipe.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Draw box and score map for photographs, and name what is in them. Needs no training and no network."""
    from wsol_lib.photo import class_number, draw, keep_aspect, locate, open_photo
    from wsol_lib.types import WsolError

    localizer, classes, frame = default_network() if source is None else trained_network(source, runs)
    wanted = None if name is None else class_number(name, classes)
    found: list[dict[str, Any]] = []
    faults = 0
    for path in images:
        try:
            picture = open_photo(path)
        except WsolError as error:
            complain(f"{error} (skipped)")
            faults += 1
            continue
        finding = locate(localizer, classes, picture, frame=frame or keep_aspect, wanted=wanted, top=top)
        figure = save_figure(draw(picture, finding), figure_path(path, out, [entry["figure"] for entry in found]))
        found.append({"image": str(path), **finding.as_dict(), "figure": str(figure)})
        if not as_json:
            say(sentence(found[-1]))
    if as_json:
        say(json.dumps(found, indent=2))
    if faults:
        raise typer.Exit(1)


@app.command()
def compare(
    recipes: Recipes,
    file: To,
    vary: Vary = None,
    seeds: Seeds = "0,1,2,3,4",
    overrides: Set = None,
    out: Out = Path("runs"),
    device: Device = None,
) -> None:
    """Run recipes at several settings with several seeds, and sum up with 95 % intervals. Finished cells are kept."""
    from wsol_lib import grid

    chosen = grid.asked(recipes, overrides or (), vary or (), seeds)
    for row in grid.compare(chosen, file, out=out, device=device)["summary"]:
        say(summary_line(row))
    say(f"results: {file}")


@recipes_app.command("list")
def list_recipes() -> None:
    """Names of the recipes."""
    from wsol_lib.recipe import recipe_names

    say("\n".join(recipe_names()))


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")]) -> None:
    """A recipe as it is written."""
    from wsol_lib.recipe import recipe_path

    say(recipe_path(name).read_text(encoding="utf-8").rstrip())


def say(text: str) -> None:
    """Print, on the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def recipe_of(source: str, overrides: list[str], out: Path) -> tuple[Any, Path]:
    """The recipe of a run's folder, or of that name or file, with overrides; and the folder of all runs."""
    from wsol_lib.engine import load_recipe

    results = Path(source) / "results.json"
    if not results.is_file():
        return load_recipe(source, overrides), out
    contents = json.loads(results.read_text(encoding="utf-8"))["recipe"]
    return load_recipe(contents, overrides), Path(source).resolve().parent


def default_network() -> tuple[Any, tuple[str, ...], None]:
    """EfficientNet-Lite0 with its ImageNet classifier, read by CAM; the names of its classes; no frame of its own."""
    from wsol_lib.backbones import create, imagenet_classes
    from wsol_lib.methods.cam import CAM

    return CAM.pretrained(create(weights="lite0-pip")), imagenet_classes(), None


def trained_network(source: str, out: Path) -> tuple[Any, tuple[str, ...], Any]:
    """The method of a trained recipe, the names of its classes, and the frame in which it sees all of a picture."""
    from wsol_lib.data import load
    from wsol_lib.data.geometry import Frame
    from wsol_lib.engine import make_protocol, run

    recipe, root = recipe_of(source, ["evaluate.limit=1"], out)
    result = run(recipe.model_copy(update={"evaluate": None}), root, device="cpu", train=False, progress=False)
    trained_on = recipe.data
    data = load(trained_on.name, trained_on.split, size=trained_on.size, **trained_on.options)
    side = make_protocol(recipe.evaluate).side
    return result.localizer, data.classes, lambda _: Frame(side, side)


def figure_path(photo: Path, out: Path | None, taken: list[str]) -> Path:
    """Where a figure goes: beside the photograph or in a folder, as `NAME.wsol.png`, numbered if that is taken."""
    folder = photo.parent if out is None else out
    names = (f"{photo.stem}{number}.wsol.png" for number in ("", *(f"-{i}" for i in range(2, len(taken) + 3))))
    return next(folder / name for name in names if str(folder / name) not in taken)


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure, making its folder if need be, and close it."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def sentence(found: dict[str, Any]) -> str:
    """What `predict` prints for one photograph."""
    box = ", ".join(f"{v:.0f}" for v in found["box"])
    name, likely = found["class"].split(",")[0], found["probability"]
    lines = [f"{found['image']}: {name} ({100 * likely:.1f} %) in the box [{box}]"]
    if likely < UNLIKELY:
        lines.append("  the network hardly believes in this class here: the box may hold anything")
    lines += [f"  {100 * entry['probability']:5.1f} %  {entry['class']}" for entry in found["top"]]
    return "\n".join([*lines, f"  figure: {found['figure']}"])


def table(results: dict[str, Any]) -> str:
    """The scores of a run in per cent, beside the trivial floors."""
    columns = ["gt_known", "max_box_acc", "max_box_acc_v2", "top1_loc", "top5_loc", "top1_cls"]
    columns += [name for name in ("pxap", "piou") if results["scores"][name] is not None]
    rows = {results["name"]: results["scores"], **results["floors"]}
    width = max(len(name) for name in rows)
    head = f"{results['data']}, n = {results['n']}, protocol {results['recipe']['evaluate']['protocol']}, per cent"
    lines = [head, " " * width + "".join(f"{name:>15}" for name in columns)]
    for name, scores in rows.items():
        cells = ("-" if scores[column] is None else f"{scores[column]:.2f}" for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    chosen = (*UPPER_BOUNDS, *(AT_TAU if results["protocol"]["tau"] == "best" else ()))
    bounds = ", ".join(name for name in columns if name in chosen)
    return "\n".join([*lines, f"upper bounds, threshold chosen on these very pictures: {bounds}"])


def summary_line(row: dict[str, Any]) -> str:
    """One setting of a comparison: mean and half width of each score."""
    setting = ", ".join(f"{key}={value}" if key != "recipe" else str(value) for key, value in row["setting"].items())
    scores = (f"{name} {mean_and_half_width(score)}" for name, score in row["scores"].items())
    return f"{setting} ({len(row['seeds'])} seeds): {', '.join(scores)}"


def mean_and_half_width(score: dict[str, float | None]) -> str:
    """A mean with its half width, where one is known."""
    half = score["half_width"]
    return f"{score['mean']:.1f}" if half is None else f"{score['mean']:.1f} ± {half:.1f}"
