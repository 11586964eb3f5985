"""The workers of a session or an export, as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluators.pool import EvaluatorPool, PoolError, open_pool
from mmmo.config import CampaignConfig
from mmmo.errors import UserError, advice
from mmmo.preflight import Facts, workbench


@contextmanager
def open_workers(
    config: CampaignConfig, facts: Facts, count: int, trial_timeout_s: float, logs: Path
) -> Iterator[EvaluatorPool]:
    """Open the campaign's executor; it is closed at the end of the block.

    Its workers refuse weights and items that are not those of the facts.

    Raises:
        UserError: no folder for logs can be made, or no worker can be started, now or later.
    """
    try:
        with open_pool(
            config.pool.executor, workbench(config, facts), count, trial_timeout_s, logs
        ) as pool:
            yield pool
    except PoolError as error:
        raise UserError(str(error), advice(error.__cause__)) from None
