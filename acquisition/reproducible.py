"""Random numbers, warnings and threads of BoTorch and torch, kept in hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from botorch.exceptions.warnings import BadInitialCandidatesWarning, OptimizationWarning
from botorch.settings import validate_input_scaling
from linear_operator.utils.warnings import NumericalWarning


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Run BoTorch so that the same inputs give the same bits, and leave no trace outside.

    - Its random numbers come from a fork of torch's CPU generator, seeded here.
    - Warnings that are no news: constant outcomes, jitter for tied points, a flat acquisition, a
      line search that is tried again (a fit that fails for good still raises).
    - One thread: the tensors are small, and two threads that wait for each other on a busy machine
      took ten times longer; the number of threads could also change the bits.

    Not for two threads at once.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
            validate_input_scaling(False),
        ):
            warnings.simplefilter("ignore", NumericalWarning)
            warnings.simplefilter("ignore", BadInitialCandidatesWarning)
            warnings.simplefilter("ignore", OptimizationWarning)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
