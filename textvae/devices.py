"""The device and the threads that a command line names, checked before anything is loaded.

PyTorch is imported only by what needs it, so that a command line's help answers at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DeviceError(ValueError):
    """There is no such device, or PyTorch cannot use it on this machine."""


def choose(name: str | None) -> torch.device:
    """The device `cpu`, `cuda` or `cuda:1`; of None the first GPU if there is one, else the CPU.

    Raises DeviceError, which says what would be right.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"there is no device {name!r}; it must be cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        usable = f"cuda:0 to cuda:{gpus - 1}" if gpus > 1 else "cuda:0" if gpus else "none"
        raise DeviceError(
            f"device {name}: PyTorch {torch.__version__} can use no such GPU here (it can use {usable}); "
            "cpu is always there"
        )
    return device


def threads(text: str) -> int:
    """A number of threads, for argparse. Raises ArgumentTypeError if it is none, or below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
