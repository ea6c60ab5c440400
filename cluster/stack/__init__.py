"""The local stack: Redis, a Ray head with its dashboard, Serve and the dispatcher; up, down and status.

Everything listens on 127.0.0.1. Ray's token and Redis' password are made once and kept, readable by their
owner alone, under `<home>/run`. What `up` starts, `down` ends, and nothing else: another Ray of the same
machine is never touched. Importing this package imports neither ray nor torch.
"""

from __future__ import annotations

from cluster.stack.local import down, status, up
from cluster.stack.parts import ON_LOOPBACK, PARTS
from cluster.stack.state import PartStatus, Stack, StackError, read

__all__ = ["ON_LOOPBACK", "PARTS", "PartStatus", "Stack", "StackError", "down", "read", "status", "up"]
