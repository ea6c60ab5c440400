"""Who starts when: a policy without I/O and without a clock. `docs/scheduling.md` says what it promises."""

from __future__ import annotations

from jobs.scheduling.accounts import Accounts, Spent
from jobs.scheduling.backlog import Backlog
from jobs.scheduling.deciding import decide
from jobs.scheduling.explaining import Explainer
from jobs.scheduling.growing import Patience
from jobs.scheduling.order import Line, first_of_groups
from jobs.scheduling.policy import Growing, Policy, Preempting, Share, parse_policy, read_policy
from jobs.scheduling.reserving import Promises
from jobs.scheduling.room import too_large
from jobs.scheduling.values import (
    Blocked,
    Cluster,
    Decisions,
    Group,
    Growth,
    History,
    Node,
    Preemption,
    Reason,
    Reservation,
    Running,
    Shape,
    Used,
    Waiting,
)

__all__ = [
    "Accounts",
    "Backlog",
    "Blocked",
    "Cluster",
    "Decisions",
    "Explainer",
    "Group",
    "Growing",
    "Growth",
    "History",
    "Line",
    "Node",
    "Patience",
    "Policy",
    "Preempting",
    "Preemption",
    "Promises",
    "Reason",
    "Reservation",
    "Running",
    "Shape",
    "Share",
    "Spent",
    "Used",
    "Waiting",
    "decide",
    "first_of_groups",
    "parse_policy",
    "read_policy",
    "too_large",
]
