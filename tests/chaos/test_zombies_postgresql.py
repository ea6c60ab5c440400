"""An attempt that is frozen in the middle of a write to PostgreSQL, replaced, and thawed.

SQLite lets nobody else write then. PostgreSQL ends the session of whoever is silent for so long.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..jobs.postgresql import limited
from .crashes import Road
from .forking import Nursery
from .ground import Redis

ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
WRITES = ("record_checkpoint", "finish_attempt", "record_version")


@pytest.mark.parametrize("write", WRITES if ALL else WRITES[:1])
def test_a_commit_that_is_thawed_too_late_changes_nothing(
    tmp_path: Path, nursery: Nursery, redis: Redis, postgresql: str, write: str
):
    """Frozen right before it, with the rows of its job and attempt locked: others take them all the same."""
    url = limited(postgresql, idle_in_transaction_session_timeout="2s")  # of its user, who is in a hurry
    road = Road("straight", tmp_path / "home", nursery, redis.url, None, url)
    redis.flush()
    one = road.haunt(f"attempt commit {write} #1")
    assert one.reached and one.refused
    assert one.problems == []
    assert one.lived < 5.0
