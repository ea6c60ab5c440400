"""Part `memory`: what the softmax loss adds to a process's peak, at a vocabulary of 50,000."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from speed.ours import Say

VOCABULARY, WIDTH = 50_000, 256


def table(
    positions: list[int], say: Say, *, vocabulary: int = VOCABULARY, width: int = WIDTH
) -> dict[str, Any]:
    """For each number of positions the growth, in MB of 10^6 bytes, of ours and of the plain loss.

    Each in a process of its own. The plain one holds logits three times over (themselves, their log-softmax,
    their gradient); where that is more than half of the memory at hand it is not tried.
    """
    rows = []
    for count in positions:
        say(f"loss of {count} positions")
        row: dict[str, Any] = {"positions": count, "logits MB": count * vocabulary * 4 / 1e6}
        for side in ("ours", "plain"):
            needed = 3 * count * vocabulary * 4
            if side == "plain" and needed > psutil.virtual_memory().available / 2:
                row[side] = None
            else:
                row[side] = _apart(side, count, vocabulary, width)
        rows.append(row)
    return {"vocabulary": vocabulary, "width": width, "rows": rows}


def _apart(side: str, positions: int, vocabulary: int, width: int) -> float:
    program = "import sys; from speed import loss_memory; loss_memory.grow(*sys.argv[1:])"
    arguments = [side, str(positions), str(vocabulary), str(width)]
    root = Path(__file__).parent.parent
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {program}", *arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(answer.stdout))


def grow(side: str, positions: str, vocabulary: str, width: str) -> None:
    """What that process does: print by how many MB one forward and backward pass raised the peak."""
    import torch
    from torch.nn import functional as F

    from textvae.softmax import linear_cross_entropy

    def loss(rows: int) -> None:
        hidden = torch.rand(rows, int(width), requires_grad=True)
        targets = torch.randint(int(vocabulary), (rows,))
        if side == "ours":
            total, _, _ = linear_cross_entropy(hidden, weight, bias, targets)
        else:
            total = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
        total.backward()

    weight = torch.rand(int(vocabulary), int(width), requires_grad=True)
    bias = torch.zeros(int(vocabulary), requires_grad=True)
    loss(8)  # loads the kernels, and leaves the gradients of the weights where they stay
    before = _peak()
    loss(int(positions))
    print(json.dumps((_peak() - before) / 1e6))


def _peak() -> int:
    """The largest resident set of this process so far, in bytes.

    Not getrusage's: a process begins with the figure of the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
