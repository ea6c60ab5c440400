"""Do database, Redis, cluster, served models and artifacts agree? Every disagreement by name, and repairs.

The database is the truth. What the others say is read before what the database says wherever the database is
written last, and after it where it is written first; what looks wrong is looked at twice. So a service at
work is not taken for a broken one.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.queue import QueueUnavailable
from jobs.verify.files import checkpoints, files, versions
from jobs.verify.parts import Disagreement, Finding, Kind, Parts
from jobs.verify.service import (
    attempts,
    database,
    dispatcher,
    leases,
    leftovers,
    processes,
    queue,
    served,
    silent,
)

__all__ = ["Disagreement", "Kind", "Parts", "verify"]


def verify(parts: Parts, *, repair: bool = False) -> list[Disagreement]:
    """Every disagreement; with `repair` those that can be are repaired, and say so.

    Raises StoreUnavailable without a database: there is nothing then to compare anything with.
    """
    found: list[Disagreement] = []
    # Leases before the queue: what is claimed just now is not in it, and has been recorded after that look.
    with_redis = (attempts, silent, leases, queue, dispatcher) if parts.redis else ()
    for look in (database, processes, leftovers, *with_redis, checkpoints, versions, files, served):
        findings: list[Finding] = []
        unanswered: list[Disagreement] = []
        try:
            for each in look(parts):
                findings.append(each)  # what was found before a part fell silent is true all the same
        except (QueueUnavailable, OSError, RuntimeError) as error:
            unanswered = [Disagreement(Kind.UNREACHABLE, look.__name__, str(error), None)]
        for finding, mend in findings:
            if not repair or mend is None:
                found.append(finding)
                continue
            try:
                mend()
            except (QueueUnavailable, OSError, RuntimeError) as error:
                found.append(replace(finding, detail=f"{finding.detail}; not repaired: {error}"))
                continue
            found.append(replace(finding, repaired=True))
        found += unanswered
    return found
