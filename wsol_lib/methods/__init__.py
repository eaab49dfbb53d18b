"""The methods of the book by name. A method's module is imported when it is asked for, not before."""

from __future__ import annotations

from importlib import import_module

from wsol_lib.types import Localizer, RecipeError, nearest

METHODS: dict[str, str] = {
    "cam": "wsol_lib.methods.cam:CAM",
    "weight-map": "wsol_lib.methods.weight_map:WeightMap",
    "triplet-embedding": "wsol_lib.methods.weight_map:TripletEmbedding",
    "siamese-weight-map": "wsol_lib.methods.weight_map:SiameseWeightMap",
    "nl-ccam": "wsol_lib.methods.ci_cam:NLCCAM",
    "ci-cam": "wsol_lib.methods.ci_cam:CICAM",
    "classification-teacher": "wsol_lib.methods.kd_ci_cam:ClassificationTeacher",
    "localization-teacher": "wsol_lib.methods.kd_ci_cam:LocalizationTeacher",
    "kd-ci-cam": "wsol_lib.methods.kd_ci_cam:KDCICAM",
    "ddt": "wsol_lib.methods.ddt:DDT",
    "c2am": "wsol_lib.methods.c2am:C2AM",
    "scr": "wsol_lib.methods.wend:SCR",
    "wend": "wsol_lib.methods.wend:WEND",
    "class-token": "wsol_lib.methods.ts_cam:ClassToken",
    "ts-cam": "wsol_lib.methods.ts_cam:TSCAM",
    "sat": "wsol_lib.methods.sat:SAT",
    "clip-maps": "wsol_lib.methods.clip_maps:ClipMaps",
    "ted-loc": "wsol_lib.methods.ted_loc:TeDLoc",
    "mini-clip": "wsol_lib.mini_clip:MiniCLIP",
}


def method(name: str) -> type[Localizer]:
    """The class of a method.

    Args:
        name: a key of `METHODS`.

    Raises:
        RecipeError: there is no such method; the text names the nearest.
    """
    if name not in METHODS:
        raise RecipeError(f"there is no method {name!r}{nearest(name, METHODS)}")
    module, kind = METHODS[name].split(":")
    return getattr(import_module(module), kind)
