from __future__ import annotations

import subprocess
import sys

from textvae import heap

# Frees large blocks, each with something small behind it that stays: does the process shrink?
PROGRAM = """
import ctypes, sys
from textvae import heap
if len(sys.argv) > 1:
    assert heap.bound(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def blocks(size):
    held = []
    for _ in range(20):
        held.append(libc.malloc(size))
        ctypes.memset(held[-1], 1, size)
        libc.malloc(200_000)  # stays, and pins what lies below it in a heap
    for block in held:
        libc.free(block)
blocks(30 << 20)  # teaches glibc that such blocks come and go
blocks(29 << 20)
status = open("/proc/self/status").read()
print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) // 1024)
"""


def resident(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_bounded_heap_gives_large_blocks_back():
    assert resident() > 400, "glibc no longer keeps large freed blocks: textvae.heap is not needed any more"
    assert resident(str(heap.WORTH_BOUNDING)) < 100


def test_small_models_are_left_alone():
    assert not heap.bound(heap.WORTH_BOUNDING - 1)
