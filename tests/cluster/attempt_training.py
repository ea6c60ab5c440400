"""What the attempts of the training tests do; imported inside their actors."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from cluster import launching, training


def train(arguments: dict[str, Any]) -> None:
    """Call training.fit, write each message to a file, stop or refuse when told, and say how it ended."""
    folder = Path(arguments["folder"])
    began = time.monotonic()
    lock = threading.Lock()

    def say(**what: Any) -> None:
        with lock, (folder / "said.jsonl").open("a") as file:
            file.write(json.dumps({"at": time.monotonic() - began, **what}) + "\n")

    def take(message: dict[str, Any]) -> dict[str, Any]:
        say(**message)
        if message["kind"] == "checkpoint" and message["name"].endswith(arguments.get("refuse", "never")):
            raise PermissionError("a newer attempt works on this job")
        stop = message["kind"] == "checkpoint" and message["name"].endswith(arguments.get("stop", "never"))
        return {"stop": stop}

    say(kind="begin", pid=os.getpid(), attempt=launching.own_name())
    try:
        result = training.fit(on_message=take, name=launching.own_name(), **arguments["fit"])
    except Exception as error:  # noqa: BLE001 - the test looks at it
        blame = {name: getattr(error, name, None) for name in ("permanent", "fault")}
        say(kind="error", type=type(error).__name__, text=str(error), **blame)
    else:
        say(kind="result", status=result.status, step=result.position.step)
