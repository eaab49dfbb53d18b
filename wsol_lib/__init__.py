"""wsol_lib: the small library on which the book of weakly supervised object localization is built."""

from __future__ import annotations

import ctypes
import os
import platform
import random

__version__ = "0.1.0"


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def tune_process() -> None:
    """Settings of the process that make networks on a CPU several times faster; call it before torch is imported.

    Threads that wait sleep instead of spinning, which stalls a busy machine. On glibc, freed memory is kept for the
    next tensor: given back to the system, it would come again as fresh pages, zeroed one by one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**26)


def setup(seed: int = 0, threads: int = 2) -> None:
    """Make a run repeatable: fixed seeds, a fixed number of threads, deterministic kernels.

    Torch's habit of filling every new tensor with NaN where kernels are deterministic is switched off: it changes no
    result and costs time (`benchmarks/weight_map.py` measures how much).

    Args:
        seed: for Python, numpy and torch.
        threads: of torch's CPU kernels; sums depend on it in the last bits, so it is fixed too.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tune_process()
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
