"""wsol_lib: the small library on which the book of weakly supervised object localization is built."""

from __future__ import annotations

import os
import random

__version__ = "0.1.0"


def setup(seed: int = 0, threads: int = 2) -> None:
    """Make a run repeatable: fixed seeds, a fixed number of threads, deterministic kernels.

    Args:
        seed: for Python, numpy and torch.
        threads: of torch's CPU kernels; sums depend on it in the last bits, so it is fixed too.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait by spinning stall on a busy machine
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
