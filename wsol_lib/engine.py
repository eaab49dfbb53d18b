"""From a recipe to a result: stages trained once and kept, then measured; and the one loop that measures."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from wsol_lib import distributed, early_stopping
from wsol_lib.checkpoint import restore, save, write_text
from wsol_lib.data import load, views
from wsol_lib.data.dataset import WsolDataset, imagenet_wnids
from wsol_lib.data.geometry import Frame
from wsol_lib.inference import localize, localized
from wsol_lib.metrics import PROTOCOLS, Evaluator, Protocol, trivial_floors
from wsol_lib.recipe import (
    CallbackPart,
    Data,
    Evaluate,
    Optimizer,
    Recipe,
    Schedule,
    Stage,
    Training,
    View,
    load_recipe,
    recipe_names,
)
from wsol_lib.training import CHECKPOINT, Callback, History, TrainingFailed, fit
from wsol_lib.types import CheckpointError, Localizer, RecipeError, nearest

__all__ = [
    "Callback",
    "CallbackPart",
    "Data",
    "Evaluate",
    "History",
    "Optimizer",
    "Recipe",
    "Run",
    "Schedule",
    "Stage",
    "Training",
    "TrainingFailed",
    "View",
    "build",
    "evaluate",
    "fit",
    "load_recipe",
    "localize",
    "recipe_names",
    "restore",
    "run",
    "save",
    "to_original",
]

WEIGHTS = "weights.safetensors"
MAKERS = {"pretrained": "pretrained", "probe": "probed"}  # a stage's head to the class method that makes it
INTERVALS = ("gt_known", "top1_loc", "top5_loc")


@dataclass
class Run:
    """What `run` gives.

    Attributes:
        recipe: as it was run.
        folder: holds `results.json`, and the recipe.
        stages: stage name to the trained method, in eval mode; the last one is measured.
        histories: stage name to its history; of an earlier run where the stage was finished then.
        results: what `results.json` holds; None where nothing was measured.
        evaluator: of the last stage, with the hits of every picture; None where nothing was measured.
    """

    recipe: Recipe
    folder: Path
    stages: dict[str, Localizer] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)
    results: dict[str, Any] | None = None
    evaluator: Evaluator | None = None

    @property
    def localizer(self) -> Localizer:
        """The method of the last stage."""
        return self.stages[self.recipe.stages[-1].name]


def run(
    recipe: Recipe | str | Path,
    out: str | Path = "runs",
    *,
    device: str | None = None,
    fresh: bool = False,
    train: bool = True,
    progress: bool = True,
    callbacks: Mapping[str, Sequence[Callback]] | None = None,
) -> Run:
    """Train the stages of a recipe that are not finished yet, in order, then measure the last one.

    A finished stage is kept under `out/stages`, by a hash of its part of the recipe, the seed, the data, the stages it
    needs and the code that trains it. An interrupted one goes on from its last checkpoint.

    Args:
        recipe: a Recipe, its name or its file.
        out: folder of all runs; recipes share finished stages in it.
        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        fresh: train all stages anew.
        train: False refuses to train a stage that is not finished.
        progress: bars on rank 0, where a terminal shows them.
        callbacks: stage name to callbacks for its training, asked after those of the recipe.

    Raises:
        RecipeError: no such recipe, method, view or protocol, or an argument that they do not take.
        CheckpointError: `train` is False and a stage is not finished.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    with distributed.processes(device) as place:
        result = Run(recipe, Path(out) / f"{recipe.name.replace('/', '-')}-{digest(recipe.model_dump(mode='json'))}")
        data = _load(recipe.data.name, recipe.data.split, recipe.data.size, recipe.data.options)
        hashes: dict[str, str] = {}
        for stage in recipe.stages:
            hashes[stage.name] = _stage_hash(recipe, stage, data, hashes)
            folder = Path(out) / "stages" / f"{stage.name}-{hashes[stage.name]}"
            if not train and stage.epochs and not (folder / WEIGHTS).is_file():
                raise CheckpointError(f"stage {stage.name!r} of {recipe.name} is not trained: run `wsol train` first")
            kept = (callbacks or {}).get(stage.name, ())
            localizer, history = _run_stage(recipe, stage, data, result.stages, folder, place, fresh, kept, progress)
            result.stages[stage.name], result.histories[stage.name] = localizer.eval(), history
        if recipe.evaluate is not None:
            _measure(result, data, progress)
    return result


def build(stage: Stage, data: WsolDataset, earlier: Mapping[str, Localizer] | None = None) -> Localizer:
    """The untrained method of a stage.

    The method's class is called with the number of classes as `classes`, the backbone where the stage has one, the
    stage's `args`, and the earlier stages it needs (the methods themselves; it wraps them in `types.Frozen`). A method
    that wants more of the data, such as class names, has a class method `from_data(data, **arguments)` that is called
    instead, without `classes`.

    Raises:
        RecipeError: an unknown method, or an argument that it does not take.
    """
    from wsol_lib.backbones import create, imagenet_indices
    from wsol_lib.methods import method

    kind: Any = method(stage.method)
    place = f"stages.{stage.name}"
    arguments: dict[str, Any] = {**stage.args, **(earlier or {})}
    if stage.backbone is not None:
        arguments["backbone"] = _call(create, f"{place}.backbone", **stage.backbone)
    if stage.head != "new" and not hasattr(kind, MAKERS[stage.head]):
        raise RecipeError(f"the method {stage.method!r} takes no {stage.head} head; leave out head: {stage.head}")
    if stage.head == "probe":
        return _call(kind.probed, f"{place}.args", data=data, **arguments)
    if stage.head == "pretrained":
        return _call(
            kind.pretrained,
            f"{place}.args",
            indices=imagenet_indices(imagenet_wnids(data, "pretrained head")),
            **arguments,
        )
    if hasattr(kind, "from_data"):
        return _call(kind.from_data, f"{place}.args", data, **arguments)
    return _call(kind, f"{place}.args", classes=len(data.classes), **arguments)


def evaluate(
    localizer: Localizer,
    dataset: WsolDataset,
    protocol: Protocol,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
    limit: int | None = None,
    names: bool = True,
) -> Evaluator:
    """Localize every picture of a data set and measure the maps or boxes; every picture counts once on any number of
    processes, and every rank gets the same Evaluator.

    A method that uses labels draws the map of the true class (GT-known); Top-1 and Top-5 come from its logits. Where
    the data set gives masks, the maps get pixel scores too.

    Args:
        dataset: of a split that shows boxes; loaded with `view=protocol`, or without a view, which is then set.
        limit: measure only so many pictures, evenly spread over the data set.
        names: False where the method learned other classes than the data set has: then Top-1 and Top-5 are unknown.

    Raises:
        SupervisionError: it is a training split.
        ValueError: the data set is seen through another view than `protocol`.
    """
    dataset = _through(dataset, protocol, limit)
    evaluator = Evaluator(protocol)
    for batch, found in localized(localizer, dataset, batch_size, workers, progress):
        sizes = torch.tensor([dataset.image_size(i) for i in batch["index"].tolist()])
        evaluator.update(
            found, batch["boxes"], labels=batch["label"] if names else None, index=batch["index"], image_sizes=sizes,
            masks=batch.get("masks"), ignore=batch.get("ignore"),
        )  # fmt: skip
    first, *others = distributed.gather_objects(evaluator)
    for other in others:
        first.merge(other)
    return first


def _through(dataset: WsolDataset, protocol: Protocol, limit: int | None) -> WsolDataset:
    if dataset.view is not None and dataset.view != protocol:
        raise ValueError("the data set is seen through another protocol than the one to measure with: load it anew")
    n = len(dataset)
    kept = range(n) if limit is None or limit >= n else torch.linspace(0, n - 1, limit).long().tolist()
    seen = dataset.subset(kept)
    if not seen.may_see_boxes:
        seen.boxes(0)  # says why
    seen.view = protocol
    return seen


def _load(name: str, split: str, size: int | None, options: Mapping[str, Any], **how: Any) -> WsolDataset:
    try:
        return load(name, split, size=size, **how, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the recipe's data cannot be loaded: {error}") from error


def _call(function: Any, place: str, *values: Any, **arguments: Any) -> Any:
    """Call with the arguments of a recipe; one that the function does not take is a fault of the recipe."""
    signature = inspect.signature(function)
    try:
        signature.bind(*values, **arguments)
    except TypeError as error:
        strays = [name for name in arguments if name not in signature.parameters]
        hint = nearest(strays[0], signature.parameters) if strays else ""
        raise RecipeError(f"{place}: {error}{hint}") from None
    return function(*values, **arguments)


def _code_of(stage: Stage, data: WsolDataset, localizer: type[Localizer]) -> str:
    parts: list[Any] = [fit, localizer, type(data)]
    if stage.views:
        parts.append(views)
    if stage.hold_out or stage.callbacks:
        parts.append(early_stopping)
    return code_version(Path(inspect.getfile(part)) for part in parts)


def _stage_hash(recipe: Recipe, stage: Stage, data: WsolDataset, earlier: Mapping[str, str]) -> str:
    from wsol_lib.methods import method

    code = _code_of(stage, data, method(stage.method))
    pictures = digest([data.image_ids, data.labels.tolist()])
    needed = [earlier[name] for name in stage.leans_on]
    part = stage.model_dump(mode="json", exclude={"workers", "checkpoint_steps"})
    return digest([part, recipe.seed, recipe.data.model_dump(mode="json"), pictures, needed, code, _weights_of(stage)])


def _weights_of(stage: Stage) -> str | None:
    """What the weights file of a stage's backbone holds; None where the weights are no file."""
    path = Path(str((stage.backbone or {}).get("weights", "")))
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _run_stage(
    recipe: Recipe,
    stage: Stage,
    data: WsolDataset,
    earlier: Mapping[str, Localizer],
    folder: Path,
    device: torch.device,
    fresh: bool,
    callbacks: Sequence[Callback],
    progress: bool,
) -> tuple[Localizer, History]:
    needed = {argument: earlier[name].requires_grad_(False) for argument, name in stage.needs.items()}
    learned, held = _split(stage, data, recipe.seed)
    with distributed.kept_randomness():
        distributed.seed_all(recipe.seed, stage.name)
        localizer = build(stage, learned, needed).to(device)
    if not stage.epochs:
        return localizer, History()
    if fresh and distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    distributed.barrier()
    if (folder / WEIGHTS).is_file():
        return localizer, History(**json.loads(restore(folder / WEIGHTS, localizer)["history"]))
    viewed = _viewed(stage, learned, earlier, recipe.seed, progress)
    asked = [*_callbacks(stage, held, viewed), *callbacks]
    history = fit(localizer, viewed, stage, seed=recipe.seed, out=folder, callbacks=asked, progress=progress)
    if distributed.rank() == 0:
        save(folder / WEIGHTS, localizer, {"history": json.dumps(asdict(history))})
        (folder / CHECKPOINT).unlink()
    distributed.barrier()
    return localizer, history


def _split(stage: Stage, data: WsolDataset, seed: int) -> tuple[WsolDataset, WsolDataset]:
    """What a stage learns from, and what it holds out."""
    kept, held = early_stopping.hold_out(data.labels, stage.hold_out, seed, stage.name)
    return data.subset(kept) if held else data, data.subset(held)


def _callbacks(stage: Stage, held: WsolDataset, viewed: WsolDataset) -> list[Callback]:
    """The callbacks of a recipe's stage."""
    place, still = f"stages.{stage.name}.callbacks", early_stopping.HeldOut(held, viewed)
    kinds = [_class_of(early_stopping, Callback, "callback", part.name) for part in stage.callbacks]
    given = [{"workers": stage.workers, **part.args} for part in stage.callbacks]
    try:
        return [_call(kind, place, still, **arguments) for kind, arguments in zip(kinds, given, strict=True)]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{place}: {error}") from error


def _viewed(
    stage: Stage, data: WsolDataset, earlier: Mapping[str, Localizer], seed: int, progress: bool
) -> WsolDataset:
    """The training data through the views of a stage."""
    viewed = data
    for view in stage.views:
        said = {key: _said(source, data, earlier, stage, progress) for key, source in view.needs.items()}
        viewed = _wrapped(view, viewed, said, seed, f"stages.{stage.name}.views")
    return viewed


def _wrapped(view: View, data: WsolDataset, said: Mapping[str, Any], seed: int, place: str) -> WsolDataset:
    kind = _class_of(views, WsolDataset, "view", view.name)
    arguments = {**view.args, **said}
    if "seed" in inspect.signature(kind).parameters:
        arguments.setdefault("seed", seed)
    if view.choices:
        arguments["choices"] = [_call(views.Augmented, place, data, seed=seed, **choice) for choice in view.choices]
    return _call(kind, place, data, **arguments)


def _class_of(module: ModuleType, base: type, what: str, name: str) -> Any:
    """The class that a recipe names, of those in a module that derive from `base`."""
    kinds = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base) and v is not base}
    if name not in kinds:
        raise RecipeError(f"there is no {what} {name!r}{nearest(name, kinds)}")
    return kinds[name]


def _said(
    source: str, data: WsolDataset, earlier: Mapping[str, Localizer], stage: Stage, progress: bool
) -> Tensor | list[Tensor]:
    """What an earlier stage says of the training pictures: maps, or boxes in pixels of the original pictures."""
    name, _, part = source.rpartition(".")
    if part not in ("maps", "boxes"):
        raise RecipeError(f"a view of stage {stage.name!r} needs {source!r}: write STAGE.maps or STAGE.boxes")
    found = localize(earlier[name], data, workers=stage.workers, progress=progress)
    given = found.maps if part == "maps" else found.boxes
    if given is None:
        raise RecipeError(
            f"a view of stage {stage.name!r} needs {source!r}, but the method of {name!r} gives no {part}"
        )
    if isinstance(given, Tensor):
        return given
    return [to_original(boxes, data.frame(i), data.image_size(i)) for i, boxes in enumerate(given)]


def to_original(boxes: Tensor, frame: Frame, image_size: tuple[int, int]) -> Tensor:
    """Boxes Float[N,4] in a frame without mirroring, in pixels of the original picture of (width, height)."""
    left, top, _, _ = frame.window
    scale = boxes.new_tensor([image_size[0] / frame.width, image_size[1] / frame.height] * 2)
    return (boxes + boxes.new_tensor([left, top, left, top])) * scale


def _measure(result: Run, learned: WsolDataset, progress: bool) -> None:
    """Measure the last stage, and write what was found with all that it depends on."""
    recipe, how = result.recipe, result.recipe.evaluate
    assert how is not None
    dataset, protocol = evaluation_data(recipe)
    workers = recipe.stages[-1].workers
    start = time.perf_counter()
    result.evaluator = evaluate(
        result.localizer, dataset, protocol,
        batch_size=how.batch_size, workers=workers, progress=progress, limit=how.limit,
        names=dataset.classes == learned.classes,
    )  # fmt: skip
    result.results = results_of(result, _through(dataset, protocol, how.limit), protocol, time.perf_counter() - start)
    if distributed.rank() == 0:
        write_text(result.folder / "results.json", json.dumps(result.results, indent=2) + "\n")
    distributed.barrier()


def evaluation_data(recipe: Recipe) -> tuple[WsolDataset, Protocol]:
    """What a recipe with `evaluate` is measured on, as the protocol sees it, and the protocol.

    Raises:
        RecipeError: no such data set, preset or field, or a value that is refused.
        DataMissing: the data are not there.
    """
    how = recipe.evaluate
    assert how is not None
    protocol = make_protocol(how)
    name = how.data or recipe.data.name
    size = recipe.data.size if name == "scenes" else None
    options = {**recipe.data.options, **how.options} if name == recipe.data.name else how.options
    return _load(name, how.split, size, options, view=protocol), protocol


def make_protocol(how: Evaluate) -> Protocol:
    """The protocol of a recipe: a preset of `metrics.PROTOCOLS` with some of its fields changed.

    Raises:
        RecipeError: no such preset or field, or a value the protocol refuses.
    """
    if how.protocol not in PROTOCOLS:
        raise RecipeError(f"there is no protocol {how.protocol!r}{nearest(how.protocol, PROTOCOLS)}")
    try:
        return replace(PROTOCOLS[how.protocol], **how.args)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"evaluate.args: {error}") from None


def results_of(result: Run, dataset: WsolDataset, protocol: Protocol, seconds: float) -> dict[str, Any]:
    """What `results.json` holds: scores, intervals, floors, and all that they depend on."""
    evaluator, recipe = result.evaluator, result.recipe
    assert evaluator is not None
    scores = evaluator.compute()
    boxes = [dataset.boxes(i) for i in range(len(dataset))]
    floors = trivial_floors(protocol, boxes, dataset.image_sizes)
    pixels = evaluator.pixel_floors()
    return {
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "protocol": asdict(protocol),
        "supervision": recipe.data.options.get("supervision", "image"),
        "data": f"{dataset.name} {dataset.split}",
        "n": scores.n,
        "scores": _known(scores.as_dict()),
        "intervals": {name: evaluator.interval(name) for name in INTERVALS if evaluator.per_image(name) is not None},
        "floors": {name: _known(floor.as_dict() | pixels.get(name, {})) for name, floor in floors.items()},
        "kept_epochs": {name: history.kept_epoch for name, history in result.histories.items()},
        "training_seconds": sum(epoch["seconds"] for h in result.histories.values() for epoch in h.epochs),
        "evaluation_seconds": seconds,
        **provenance(),
    }


def _known(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores for JSON, which has no NaN: what is not known is null."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def digest(contents: Any) -> str:
    """Twelve hexadecimal digits that stand for anything JSON can hold."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]


def code_version(files: Iterable[Path]) -> str:
    """A digest of these source files, and of all files of the library that they import, directly or not.

    Comments, layout and docstrings do not count.
    """
    found: dict[Path, str] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found[file] = ast.dump(_without_docstrings(tree))
            waiting += [path for name in _imports(tree) if (path := _source(name))]
    return digest(sorted([file.name, text] for file, text in found.items()))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def _source(name: str) -> Path | None:
    """The file of a module of the library; None where the name is no module of it."""
    stem = Path(__file__).parent.parent.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports from the library: modules, and names that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsol_lib"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)


def provenance() -> dict[str, Any]:
    """What else a result depends on: commit, versions, hardware, date."""
    packages = ("wsol-lib", "torch", "torchvision", "timm", "transformers", "numpy", "pillow", "opencv-python-headless")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": distributed.world(),
        },
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def _git(*arguments: str) -> str | None:
    """What git says of the checkout this library lies in; None where it is not one."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    if shutil.which("git") is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
