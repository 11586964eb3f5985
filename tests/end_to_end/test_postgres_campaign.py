"""A campaign in PostgreSQL, killed once, is the campaign that SQLite holds."""

from __future__ import annotations

import signal
from collections.abc import Callable

from terminals import Terminal, repeatable

pytest_plugins = ("postgres",)


def test_a_campaign_in_postgresql(
    postgres_url: str, terminal: Callable[..., Terminal], finished: Terminal
) -> None:
    opened = terminal(settings={"MMMO_STORE": postgres_url})
    with opened.start("launch", "campaign.yaml") as campaign:
        opened.wait_for("completed", 4, campaign)
        campaign.send_signal(signal.SIGSTOP)  # it must not end before the other command looks
        refused = opened.run("resume", "digits", code=3)
        assert f"already running: process {campaign.pid} on" in refused.stderr
        campaign.kill()
        campaign.wait()
    opened.run("resume", "digits")
    trials, expected = opened.history().trials, finished.history().trials
    assert [repeatable(t) for t in trials.values()] == [repeatable(t) for t in expected.values()]
    assert opened.count("completed") == len(expected)
    assert (
        opened.read("pareto", "digits")["hypervolume"]
        == (finished.read("pareto", "digits")["hypervolume"])
    )
    assert not (opened.folder / "runs" / "mmmo.db").exists()
    opened.store.close()
