"""A server of model versions that is a file: what the dispatcher's keeper wanted served, and could be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textvae import checkpoint
from textvae.artifacts import fetch


class FileServer:
    """Stands for `cluster.serving`; like it, it refuses a version that does not load and keeps the other."""

    def __init__(self, home: Path):
        self.path = home / "served.json"

    def apply(self, desired: Mapping[str, Mapping[str, Any]]) -> None:
        for version in desired.values():
            checkpoint.verify(
                fetch(version["location"], self.path.parent / "cache"), digest=version["digest"]
            )
        elsewhere = self.path.with_suffix(f".{os.getpid()}.partial")
        elsewhere.write_text(json.dumps(desired))
        elsewhere.replace(self.path)

    def current(self) -> Mapping[str, Mapping[str, Any]]:
        return dict(json.loads(self.path.read_text())) if self.path.exists() else {}
