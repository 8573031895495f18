"""Servers that share one PostgreSQL and one bucket lose nothing and do nothing twice.

``python -m tests.cluster`` is the long run with the built-in engine; this is a short one.
"""

import shutil

import pytest

from tests.cluster.run import Wanted, run

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_trainings_survive_servers_and_a_database_that_die() -> None:
    wanted = Wanted(
        servers=2, trainings=6, configs=2, kills=5, database_failures=3, steps=40,
        mean_between_s=1.5, engine="scripted",
    )  # fmt: skip
    outcome = run(wanted, lambda text: None)
    assert outcome.problems == []
    assert outcome.kills.total() == wanted.kills
    shutil.rmtree(outcome.folder)
