"""Checkpoints: one safetensors file, written whole or not at all, that holds nothing executable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import wsol_lib
from wsol_lib.types import CheckpointError, Localizer

Tree = Any  # nested dicts, lists and tuples of tensors, numbers, strings, booleans and None


def save(path: str | Path, localizer: Localizer, state: Mapping[str, Tree] | None = None) -> None:
    """Write the weights and buffers of `localizer`, and `state`, to `path`; a file of that name is replaced at once.

    The file is a safetensors file. What is no tensor (the method's name, its class count, the version of the library,
    the rest of `state`) is JSON in its header. Parts held by `types.Frozen` are not in it.

    Args:
        path: the folder is made if need be.
        state: anything nested of dicts, lists, tuples, tensors, numbers, strings, booleans and None.
    """
    tensors: dict[str, Tensor] = {}
    header = {
        "method": type(localizer).__name__,
        "classes": class_count(localizer),
        "version": wsol_lib.__version__,
        "model": _fold(localizer.state_dict(), "model", tensors),
        "state": _fold(dict(state or {}), "state", tensors),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, written, metadata={"wsol": json.dumps(header)})
    _flush(written)
    os.replace(written, path)


def restore(path: str | Path, localizer: Localizer) -> dict[str, Tree]:
    """Load the weights and buffers at `path` into `localizer`, and return the state that was saved with them.

    Raises:
        CheckpointError: no such file, a damaged or foreign one, another method, class count or shape.
    """
    header, tensors = _read(Path(path))
    _check(path, "method", header["method"], type(localizer).__name__)
    _check(path, "class count", header["classes"], class_count(localizer))
    weights = _unfold(header["model"], tensors)
    _check_weights(path, weights, localizer.state_dict())
    localizer.load_state_dict(weights)
    return _unfold(header["state"], tensors)


def class_count(localizer: Localizer) -> int | None:
    """How many classes a method tells apart, from its attribute `classes` (a number or names); None without one."""
    classes = getattr(localizer, "classes", None)
    return len(classes) if isinstance(classes, (list, tuple)) else classes


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(text, encoding="utf-8")
    _flush(written)
    os.replace(written, path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fold(tree: Tree, name: str, tensors: dict[str, Tensor]) -> Tree:
    """The tree as JSON; its tensors go to `tensors` under names that begin with `name`."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"map": [[key, _fold(value, f"{name}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [_fold(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]}
    return {"value": tree}


def _unfold(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "map":
        return {key: _unfold(part, tensors) for key, part in value}
    if kind == "value":
        return value
    parts = [_unfold(part, tensors) for part in value]
    return tuple(parts) if kind == "tuple" else parts


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; train first, or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint ({error}); delete it and train again") from None
    if "wsol" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of this library")
    return json.loads(metadata["wsol"]), tensors


def _check(path: str | Path, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise CheckpointError(f"{path} is a checkpoint with {what} {found}, but {what} {wanted} is wanted")


def _check_weights(path: str | Path, found: Mapping[str, Tree], wanted: Mapping[str, Tree]) -> None:
    strays = sorted(found.keys() ^ wanted.keys())
    if strays:
        where = "only in the checkpoint" if strays[0] in found else "missing from the checkpoint"
        raise CheckpointError(f"{path} does not fit this network: {strays[0]!r} is {where}; use its own recipe")
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor) and found[name].shape != value.shape:
            shapes = f"{list(found[name].shape)} there and {list(value.shape)} here"
            raise CheckpointError(f"{path} is of another class count or size: {name!r} is {shapes}")
