"""How many pictures of the generated world are drawn a second: `python benchmarks/scenes.py`."""

from __future__ import annotations

import time

from wsol_lib.data import scenes


def pictures_per_second(n: int, **knobs: object) -> float:
    """Plan and draw n pictures, all cores, after a first call that compiles."""
    scenes.make(2, 0, **knobs).images  # noqa: B018
    start = time.perf_counter()
    scenes.make(n, 1, **knobs).images  # noqa: B018
    return n / (time.perf_counter() - start)


if __name__ == "__main__":
    for size, n in ((64, 2000), (224, 200)):
        for name, knobs in (("plain", {}), ("four objects, hidden and mirrored", {
            "instances": 4, "occlusion": 0.4, "reflection": 1.0, "clutter": 1.0})):  # fmt: skip
            print(f"{size} px, {name}: {pictures_per_second(n, size=size, **knobs):.0f} pictures a second")
