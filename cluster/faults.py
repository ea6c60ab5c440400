"""What of an error is the host's matter, not training's: it had no memory left, or no disk to write to."""

from __future__ import annotations

import errno
import os
from typing import Literal

Fault = Literal["rank-lost", "out-of-memory", "disk", "start-timeout"]
"""How the cluster, not training, is to blame for the end of an attempt; names of `jobs.store.Cause`."""

# No room, no quota, mounted read-only, failing.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# safetensors has one class for all of its errors, PyTorch none of its own: they are known by what they say.
_OF_DISK = (
    *(f"(os error {number})" for number in _DISK),
    *(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)),
)
_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def of_host(error: BaseException) -> Fault | None:
    """How the host is to blame for this error of a process on it, or the one behind it; none if it is not.

    The memory of a GPU is training's own matter: another attempt would want as much of it.
    """
    text = str(error)
    if isinstance(error, MemoryError) or _OF_MEMORY in text:
        return "out-of-memory"
    if (isinstance(error, OSError) and error.errno in _DISK) or any(said in text for said in _OF_DISK):
        return "disk"
    return None if error.__cause__ is None else of_host(error.__cause__)
