"""How much faster boxes at all levels are than an OpenCV contour search for each of 1000 thresholds.

    python benchmarks/evaluator.py

Prints, for bicubically up-sampled maps and for pixel noise at 224x224, the median time a map of

- the reference: wsolevaluation's 1000 thresholds, one contour search for the single box and one for all boxes;
- the same with one search shared by both, and with one threshold for each distinct 8-bit level;
- `_levels.components`, which gives both, and `boxes.level_boxes` called once for each;

all in one thread and one process, then the images a second of the whole Evaluator (resize, normalise, boxes, IoU).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import cv2
import numpy as np
import torch

from wsol_lib import _levels
from wsol_lib.boxes import level_boxes, to_bytes
from wsol_lib.metrics import Evaluator, Protocol

SIDE = 224


def upsampled(grid: int, rng: np.random.Generator) -> np.ndarray:
    score_map = cv2.resize(rng.random((grid, grid)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    score_map -= score_map.min()
    return score_map / score_map.max()


def contours_at(image: np.ndarray, level: int) -> tuple[np.ndarray, ...]:
    shown = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)[1]
    return cv2.findContours(shown, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]


def reference(score_map: np.ndarray, shared: bool = False, distinct: bool = False) -> None:
    """Single box and all boxes at every threshold, with plain OpenCV."""
    image = (255 * score_map).astype(np.uint8)
    levels = [int(tau * image.max()) for tau in np.arange(0, 1, 0.001)]
    for level in sorted(set(levels)) if distinct else levels:
        contours = contours_at(image, level)
        if contours:
            cv2.boundingRect(max(contours, key=cv2.contourArea))
        for contour in contours if shared else contours_at(image, level):
            cv2.boundingRect(contour)


def components(score_map: np.ndarray) -> None:
    levels = to_bytes(score_map)
    _levels.components(levels, int(levels.max()), _levels.CONTOUR, True)


def both_calls(score_map: np.ndarray) -> None:
    level_boxes(score_map)
    level_boxes(score_map, all_components=True)


def median_ms(work: Callable[[np.ndarray], None], maps: Iterable[np.ndarray], repeats: int = 1) -> float:
    times = []
    for score_map in maps:
        for _ in range(repeats):
            start = time.perf_counter()
            work(score_map)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def compare(name: str, maps: list[np.ndarray]) -> None:
    slow = {
        "1000 thresholds, single + multi": median_ms(reference, maps),
        "1000 thresholds, search shared": median_ms(lambda m: reference(m, shared=True), maps),
        "distinct levels only": median_ms(lambda m: reference(m, distinct=True), maps),
    }
    fast = {
        "components (both at once)": median_ms(components, maps, 5),
        "level_boxes, two calls": median_ms(both_calls, maps, 5),
    }
    print(f"\n{name}, {len(maps)} maps, median ms a map")
    for label, slow_time in slow.items():
        ratios = ", ".join(f"{slow_time / t:.0f}x {what}" for what, t in fast.items())
        print(f"  {label:34} {slow_time:9.2f}   {ratios}")
    for label, fast_time in fast.items():
        print(f"  {label:34} {fast_time:9.2f}")


def throughput(threads: int, maps: int = 512) -> None:
    raw = torch.rand(maps, 14, 14, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[40.0, 40, 180, 180]])] * maps
    seconds = []
    for _ in range(3):
        evaluator = Evaluator(Protocol(), threads=threads)
        start = time.perf_counter()
        for at in range(0, maps, 64):
            evaluator.update(raw[at : at + 64], boxes[at : at + 64])
        seconds.append(time.perf_counter() - start)
    rate = maps / statistics.median(seconds)
    print(f"Evaluator, {threads} thread(s): {rate:5.0f} maps of 14x14 a second, 50,000 in {50000 / rate:.0f} s")


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    both_calls(upsampled(14, rng))
    compare("14x14 up-sampled to 224x224", [upsampled(14, rng) for _ in range(9)])
    compare("7x7 up-sampled to 224x224", [upsampled(7, rng) for _ in range(5)])
    compare("224x224 pixel noise", [rng.random((SIDE, SIDE)) for _ in range(2)])
    print()
    throughput(1)
    throughput(2)


if __name__ == "__main__":
    main()
