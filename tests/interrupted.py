"""A strategy for tests, `interrupted:Interrupted`: Ctrl-C is pressed while it proposes."""

from __future__ import annotations

import os
import signal

from acquisition.baselines import Sobol
from acquisition.strategy import Observations, Proposal


class Interrupted(Sobol):
    """Proposes as `sobol` does."""

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        os.kill(os.getpid(), signal.SIGINT)
        return super().propose(observations, q, seed)
