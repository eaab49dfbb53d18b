"""Recipes: what is trained, on what, how, and how it is measured, typed and read from YAML."""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsol_lib.types import RecipeError, nearest


class Part(BaseModel):
    """A part of a recipe: frozen, and unknown keys are refused with the nearest right one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(explain(error, type(self))) from None

    # Parts inside parts are validated by pydantic itself, so that the outermost error knows the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class Optimizer(Part):
    """An optimiser of `torch.optim`.

    Attributes:
        name: which one.
        lr: learning rate of a parameter group that sets none; a group's `lr_scale` multiplies it.
        momentum, nesterov: for SGD.
        betas: for Adam and AdamW.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)


class Schedule(Part):
    """How the learning rate changes, step by step, from `torch.optim.lr_scheduler`.

    Attributes:
        name: cosine falls to 0; poly is (1 - t)^power; step and constant stay, but for `every`.
        warmup: epochs (fractions allowed) in which the rate climbs linearly from near 0.
        power: of poly.
        every, gamma: the rate is multiplied by gamma every so many epochs, under any name; step needs it.
    """

    name: Literal["constant", "cosine", "poly", "step"] = "constant"
    warmup: float = Field(default=0.0, ge=0)
    power: float = 0.9
    every: int | None = Field(default=None, gt=0)
    gamma: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _step_needs_every(self) -> Schedule:
        if self.name == "step" and self.every is None:
            raise ValueError("the schedule step needs the key every: after how many epochs the rate falls")
        return self


class Training(Part):
    """How a method is trained; `engine.fit` needs nothing else of a recipe.

    Attributes:
        epochs: passes over the data; 0 trains nothing.
        batch_size: images an optimiser step sees, over all processes and accumulated parts together, so that a recipe
            means the same on any machine. The tail of an epoch that does not fill a batch is left out.
        accumulate: in how many parts a process works through its share of the batch.
        precision: of the forward pass; weights stay fp32.
        head_rate: multiplies the learning rate of a method's `new_parts`, such as a head.
        clip: largest norm of the gradient, or None.
        workers: processes that load data, for each training process.
        checkpoint_steps: also write a checkpoint every so many steps inside an epoch.
    """

    epochs: int = Field(default=1, ge=0)
    batch_size: int = Field(default=32, gt=0)
    accumulate: int = Field(default=1, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    head_rate: float = Field(default=1.0, gt=0)
    clip: float | None = Field(default=None, gt=0)
    workers: int = Field(default=0, ge=0)
    checkpoint_steps: int | None = Field(default=None, gt=0)

    @property
    def lr(self) -> float:
        """The learning rate of the optimiser, for a method's `param_groups`."""
        return self.optimizer.lr


class View(Part):
    """A class of `wsol_lib.data.views` that wraps the training data.

    Attributes:
        name: of the class.
        args: for its constructor.
        needs: constructor argument -> `stage.maps` or `stage.boxes`: what an earlier stage says of each image.
        choices: arguments of `Augmented`, one set for each choice; for the view `Choices`.
    """

    name: str
    args: dict[str, Any] = {}
    needs: dict[str, str] = {}
    choices: tuple[dict[str, Any], ...] = ()


class CallbackPart(Part):
    """A class of `wsol_lib.early_stopping` that is asked after each epoch of a stage.

    Attributes:
        name: of the class.
        args: for its constructor, which gets the held-out pictures as well.
    """

    name: str
    args: dict[str, Any] = {}


class Stage(Training):
    """One method, trained once.

    Attributes:
        name: by which later stages call it.
        method: a key of `wsol_lib.methods.METHODS`.
        args: for the method's constructor.
        backbone: for `wsol_lib.backbones.create`; None for a method that takes no backbone.
        head: "pretrained" takes the backbone's own classifier, cut to the ImageNet classes of the data; "probe" fits a
            logistic regression to the labels on frozen features.
        needs: constructor argument -> name of an earlier stage, handed over trained, frozen and in eval mode.
        views: wrap the training data, the first one innermost.
        hold_out: share of the training pictures, class by class, that this stage does not learn from and keeps for its
            callbacks; of every class at least one picture is learned from.
        callbacks: asked in this order, before those given to `engine.run`.
    """

    name: str
    method: str
    args: dict[str, Any] = {}
    backbone: dict[str, Any] | None = None
    head: Literal["new", "pretrained", "probe"] = "new"
    needs: dict[str, str] = {}
    views: tuple[View, ...] = ()
    hold_out: float = Field(default=0.0, ge=0, lt=1)
    callbacks: tuple[CallbackPart, ...] = ()

    @property
    def leans_on(self) -> tuple[str, ...]:
        """Names of the earlier stages that this one needs, sorted."""
        through_views = (source.rpartition(".")[0] for view in self.views for source in view.needs.values())
        return tuple(sorted({*self.needs.values(), *through_views}))


class Data(Part):
    """What is learned from: arguments of `wsol_lib.data.load`."""

    name: str
    split: str = "train"
    size: int | None = None
    options: dict[str, Any] = {}


class Evaluate(Part):
    """How the last stage is measured.

    Attributes:
        protocol: a key of `wsol_lib.metrics.PROTOCOLS`.
        args: fields of the protocol to change, such as `tau` or its sizes.
        data: another data set than the one trained on, or None.
        split: of the data set.
        options: override those of the data.
        limit: measure only so many pictures, evenly spread; None measures all.
    """

    protocol: str = "wsolevaluation"
    args: dict[str, Any] = {}
    data: str | None = None
    split: str = "test"
    options: dict[str, Any] = {}
    batch_size: int = Field(default=64, gt=0)
    limit: int | None = Field(default=None, gt=0)


class Recipe(Part):
    """Everything that a result depends on, but for the code."""

    name: str
    seed: int = 0
    data: Data
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluate: Evaluate | None = Field(default_factory=Evaluate)

    @model_validator(mode="after")
    def _stages_follow(self) -> Recipe:
        earlier: list[str] = []
        for stage in self.stages:
            if stage.name in earlier:
                raise ValueError(f"two stages are called {stage.name!r}; give each its own name")
            for source in stage.leans_on:
                if source not in earlier:
                    raise ValueError(f"stage {stage.name!r} needs an earlier {source!r}{nearest(source, earlier)}")
            earlier.append(stage.name)
        return self


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a recipe in one sentence: the key's path, what is wrong, and the nearest right key."""
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown recipe key {path!r}{nearest(str(fault['loc'][-1]), _keys(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"the recipe lacks the key {path!r}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    expected = fault["msg"].replace("Input should be", "it should be")
    return f"recipe key {path!r} is {fault['input']!r}; {expected[0].lower()}{expected[1:]}"


def _keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part))), None)


def recipes_folder() -> Path:
    """Where the recipes that come with the library are."""
    return Path(str(resources.files("wsol_lib"))) / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the library, such as `scenes/cam`."""
    folder = recipes_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def recipe_path(source: str | Path) -> Path:
    """The YAML file of a recipe: a path, or the name of one that comes with the library.

    Raises:
        RecipeError: there is neither; the text offers the nearest name.
    """
    packaged = recipes_folder() / f"{str(source).removesuffix('.yaml')}.yaml"
    for path in (Path(source), packaged):
        if path.is_file():
            return path
    raise RecipeError(f"there is no recipe {str(source)!r}{nearest(str(source), recipe_names())}")


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or of that name, or in a mapping, with overrides.

    Args:
        source: see `recipe_path`; or the contents.
        overrides: such as `stages.0.epochs=2` or `stages.cam.optimizer.lr=0.1`; values are YAML.

    Raises:
        RecipeError: no such recipe, no YAML, an unknown or ill-typed key.
    """
    contents = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else _read(recipe_path(source))
    for override in overrides:
        _set(contents, override)
    return Recipe(**contents)


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(contents, dict):
        raise RecipeError(f"{path} holds no recipe: it should be a mapping with name, data and stages")
    return contents


def _set(contents: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"cannot read the override {override!r}: write KEY=VALUE, such as stages.0.epochs=2")
    *parents, last = path.strip().split(".")
    place: Any = contents
    for part in parents:
        place = _child(place, part, path)
    try:
        place[_slot(place, last, path)] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"the override {override!r} gives no YAML: quote its value or close its brackets") from None


def _child(place: Any, part: str, path: str) -> Any:
    slot = _slot(place, part, path)
    if isinstance(place, dict) and place.get(slot) is None:
        place[slot] = {}
    return place[slot]


def _slot(place: Any, part: str, path: str) -> int | str:
    if isinstance(place, dict):
        return part
    names = [str(entry.get("name")) for entry in place] if isinstance(place, list) else []
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(names):
        return int(part)
    raise RecipeError(f"the override {path!r} points nowhere: there is no {part!r}{nearest(part, names)}")
