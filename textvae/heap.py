"""What freed memory costs: glibc keeps large freed blocks, or gives them back and faults them in anew."""

from __future__ import annotations

import ctypes

from textvae.config import Config

# The seed's logits computed at once, in numbers; more positions than that are done chunk by chunk, and again
# in the backward pass: a long batch of a large vocabulary would otherwise fill the memory with logits alone.
LOGITS_AT_ONCE = 2**23

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_LARGE_BLOCK, _HUGE_BLOCK = 4 * 2**20, 64 * 2**20
_PAD = 64 * 2**20
_NEVER = 2**31 - 1

# Steps between two calls of `trim`. A hundred steps of imdb-cpu: 62 s and 3.4 GB at the peak; every 20
# steps 58 s and 3.9 GB; never 59 s and 4.5 GB, growing.
TRIM_EVERY = 5

_keeps = False


def settle(config: Config) -> bool:
    """Tell this process's allocator what training of `config` wants of it; whether it listens.

    By itself glibc raises the size from which a block gets pages of its own, as blocks are freed, up to
    32 MiB, and faults larger ones in at every step.

    Objective seed: every step has the same shapes. While a batch's logits fit at once, blocks stay in one
    heap, which costs little and is a fifth faster. Where they come chunk by chunk, that heap fragments and
    grows: pages of its own for every block of 4 MiB keep the peak where the first steps put it.

    Objective elbo: the gradient of a table of n-grams and the blocks of a softmax are large and short-lived.
    Without pages of their own they are taken from memory that is resident already, at twice the speed
    (docs/log.md), from a heap that fragments and grows; see `trim`.

    For the process's owner to call, before training; elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    if config.objective.kind == "seed":
        logits = config.training.batch_size * config.vocabulary.max_length * config.vocabulary.size
        if logits > LOGITS_AT_ONCE:
            return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK))
        return bool(mallopt(_M_MMAP_THRESHOLD, _HUGE_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
    global _keeps
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _PAD))
    _keeps = all(mallopt(option, value) for option, value in wanted)
    return _keeps


def trim() -> None:
    """Give the free pages of a heap that keeps them back to the system, at some 0.2 seconds a call.

    For a training loop to call every few steps. Nothing happens unless `settle` had pages kept.
    """
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)
