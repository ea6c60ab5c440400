"""Ray Train's TorchTrainer, less the process that it starts beside every run to clear up after it.

That process, a detached `PlacementGroupCleaner`, is told whom to watch by a message of the controller. A
controller that dies while it starts, as when a job is cancelled in its first seconds, never sends that, and
the process is left for ever. `cluster.launching` gives back what a dead attempt had reserved, so it isn't
needed; and without it an attempt starts one process less.

And of its settings, one more reaches the controller: for how long ranks that fail are waited for.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

ENV_VARS_TO_PROPAGATE.add("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S")


class Trainer(TorchTrainer):
    """A TorchTrainer that leaves placement groups to `cluster.launching`."""

    def _create_default_callbacks(self) -> list[Any]:
        every = super()._create_default_callbacks()  # type: ignore[misc]  # checkers see V1's
        return [each for each in every if type(each).__name__ != "PlacementGroupCleanerCallback"]
