"""The methods of the book by name. A method's module is imported when it is asked for, not before."""

from __future__ import annotations

import difflib
from importlib import import_module

from wsol_lib.types import Localizer, RecipeError

METHODS: dict[str, str] = {
    "cam": "wsol_lib.methods.cam:CAM",
}


def method(name: str) -> type[Localizer]:
    """The class of a method.

    Args:
        name: a key of `METHODS`.

    Raises:
        RecipeError: there is no such method; the text names the nearest.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METHODS)}"
        raise RecipeError(f"there is no method {name!r}: {hint}")
    module, kind = METHODS[name].split(":")
    return getattr(import_module(module), kind)
