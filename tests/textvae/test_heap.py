from __future__ import annotations

import subprocess
import sys

# Frees large blocks, each with something small behind it that stays; then the same block again and again.
PROGRAM = """
import ctypes, resource, sys
from textvae import heap
from textvae.config import Config
from textvae.parsing import parse
SEED = {"objective": "seed", "model": {"decoder": "repeat"}, "training": {"batch_size": 10}}
settings = {
    "seed": {**SEED, "vocabulary": {"kind": "words", "size": 1000}},
    "seed, many words": {**SEED, "vocabulary": {"kind": "words", "size": 20000}},
    "elbo": {},
}
if sys.argv[1] != "as it is":
    assert heap.settle(parse(Config, settings[sys.argv[1]]))
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
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks(30 << 20)  # teaches glibc that such blocks come and go
blocks(29 << 20)
status = open("/proc/self/status").read()
resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) // 1024
before = faults()
for _ in range(20):
    block = libc.malloc(60 << 20)
    ctypes.memset(block, 1, 60 << 20)
    libc.free(block)
faulted = faults() - before
heap.trim()
status = open("/proc/self/status").read()
trimmed = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) // 1024
print(resident, faulted, trimmed)
"""


def measured(setting: str) -> tuple[int, int, int]:
    """Resident megabytes after the frees, page faults of twenty blocks of 60 MiB, megabytes after a trim."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resident, faults, trimmed = map(int, done.stdout.split())
    return resident, faults, trimmed


def test_the_seeds_heap_gives_large_blocks_back():
    assert measured("as it is")[0] > 400, (
        "glibc no longer keeps large freed blocks: this is not needed any more"
    )
    assert measured("seed, many words")[0] < 100


def test_the_seeds_heap_keeps_its_blocks_while_logits_are_few():
    resident, faults, _ = measured("seed")
    assert resident > 400
    assert faults <= 60 * 256 + 100


def test_the_other_heap_faults_a_large_block_in_once():
    once = 60 * 256  # pages of 4 KiB in such a block; huge pages make it fewer
    as_it_is = measured("as it is")[1]
    resident, kept, trimmed = measured("elbo")
    assert resident > 400 and trimmed < 100  # it keeps what was freed, until it is told
    assert kept <= once + 100
    assert as_it_is > 2 * max(kept, 1), "glibc no longer faults large blocks in anew: not needed any more"
