"""What freed memory costs: glibc keeps large freed blocks, and a long training creeps up by gigabytes."""

from __future__ import annotations

import ctypes

# Below this, in bytes of expected tensors, a rank stays small whatever the allocator does.
WORTH_BOUNDING = 768 * 2**20

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE_BLOCK = 4 * 2**20


def bound(expected: int) -> bool:
    """Have this process give large freed blocks back to the system at once; whether it does from now on.

    glibc raises the size from which a block gets pages of its own, as blocks are freed, up to 32 MiB; the
    activations of a step then share one heap, which fragments and grows from step to step. A fixed size keeps
    the peak where the first steps put it, for some 15 % of a step's time in page faults. So it is done only
    where `expected`, the bytes that a rank's tensors take (textvae.model.expected_memory), is large. For the
    process's owner to call, before training; elsewhere than on glibc nothing happens.
    """
    if expected < WORTH_BOUNDING:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK))
