"""Verbs on model versions: what is served, and what was."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from jobs.store.records import RecordVerbs, finite
from jobs.store.states import EventKind
from jobs.store.tables import CheckpointRow, ModelRow, PromotionRow, VersionRow
from jobs.store.values import (
    Conflict,
    Model,
    NotFound,
    Promotion,
    Version,
)

_VERSION = tuple(VersionRow.__table__.columns)
_PROMOTION = tuple(PromotionRow.__table__.columns)


class ModelVerbs(RecordVerbs):
    """Make, promote and roll back model versions."""

    def reserve_version(self, job: str, number: int, model: str) -> int:
        """A version number for `model` that nobody else gets, so that files can be put in place under it.

        A number that is never recorded leaves a gap. Raises StaleAttempt.
        """
        for last_try in (False, True):
            try:
                with self.writing() as connection:
                    self._guard(connection, job, number)
                    changed = connection.execute(
                        update(ModelRow)
                        .where(ModelRow.name == model)
                        .values(last_version=ModelRow.last_version + 1)
                    ).rowcount
                    if not changed:
                        connection.execute(insert(ModelRow).values(name=model, last_version=1))
                    return connection.execute(
                        select(ModelRow.last_version).where(ModelRow.name == model)
                    ).scalar_one()
            except IntegrityError:  # PostgreSQL: another attempt inserted the model's row at the same moment
                if last_try:
                    raise
        raise AssertionError("unreachable")

    def record_version(
        self,
        job: str,
        number: int,
        *,
        model: str,
        version: int,
        checkpoint: int,
        location: str,
        metric: str,
        mode: str,
        reason: str,
    ) -> Version | None:
        """Record a version whose files are in place, and promote it, in one transaction.

        None, and nothing is recorded, if by now a version is served that it does not beat (`beats`). One that
        this job has recorded already stays as it is: the answer to an earlier try may have been lost.
        Raises StaleAttempt.
        """
        with self.writing() as connection:
            self._guard(connection, job, number)
            recorded = connection.execute(
                select(*_VERSION).where(
                    VersionRow.model == model, VersionRow.version == version, VersionRow.job == job
                )
            ).one_or_none()
            if recorded is not None:
                return Version(**recorded._mapping)
            row = connection.execute(
                select(CheckpointRow).where(CheckpointRow.id == checkpoint)
            ).one_or_none()
            if row is None or row.job != job:
                raise NotFound(f"job {job} has no checkpoint {checkpoint}")
            _lock(connection, model)
            current = _current(connection, model)
            if current is not None and not beats(row.value, metric, mode, current):
                return None
            connection.execute(
                insert(VersionRow).values(
                    model=model,
                    version=version,
                    job=job,
                    checkpoint=checkpoint,
                    location=location,
                    digest=row.digest,
                    metric=metric,
                    mode=mode,
                    value=row.value,
                    metrics=finite(row.metrics),
                    created=self.clock(),
                )
            )
            detail = {"model": model, "version": version}
            self._event(connection, EventKind.VERSION, job=job, attempt=number, by="attempt", detail=detail)
            self._promote(connection, model, version, by="attempt", reason=reason, job=job, attempt=number)
            return _version(connection, model, version)

    def promote(self, model: str, version: int, *, by: str, reason: str = "") -> Version:
        """Make a version the served one; one that is served already stays. Raises NotFound."""
        with self.writing() as connection:
            _lock(connection, model)
            value = _version(connection, model, version)
            current = _current(connection, model)
            if current is None or current.version != version:
                self._promote(connection, model, version, by=by, reason=reason, job=value.job)
            return value

    def roll_back(self, model: str, *, by: str, reason: str = "") -> Version:
        """Serve the version that was served before the current one; again goes back one further.

        Raises NotFound, or Conflict if there is no earlier one.
        """
        with self.writing() as connection:
            _lock(connection, model)
            if _current(connection, model) is None:
                raise NotFound(f"no model {model!r}")
            served: list[int] = []  # as a stack: promoting puts a version on top, rolling back takes it off
            rows = connection.execute(
                select(PromotionRow.version, PromotionRow.rollback)
                .where(PromotionRow.model == model)
                .order_by(PromotionRow.id)
            )
            for row in rows:
                if row.rollback:
                    served.pop()
                else:
                    served.append(row.version)
            if len(served) < 2:
                raise Conflict(f"model {model} has no version that was served before version {served[-1]}")
            value = _version(connection, model, served[-2])
            self._promote(
                connection, model, value.version, by=by, reason=reason, rollback=True, job=value.job
            )
            return value

    def models(self) -> list[Model]:
        """Every model name that has a version, by name."""
        with self.reading() as connection:
            names = connection.execute(select(ModelRow.name, ModelRow.current).order_by(ModelRow.name)).all()
            versions: dict[str, list[int]] = {}
            for row in connection.execute(
                select(VersionRow.model, VersionRow.version).order_by(VersionRow.version)
            ):
                versions.setdefault(row.model, []).append(row.version)
        return [
            Model(row.name, row.current, tuple(versions[row.name])) for row in names if row.name in versions
        ]

    def versions(self, model: str) -> list[Version]:
        """The versions of a model, the newest first. Raises NotFound if it has none."""
        query = select(*_VERSION).where(VersionRow.model == model).order_by(VersionRow.version.desc())
        with self.reading() as connection:
            found = [Version(**row._mapping) for row in connection.execute(query)]
        if not found:
            raise NotFound(f"no model {model!r}")
        return found

    def version(self, model: str, version: int | None = None) -> Version:
        """A version of a model, the served one by default. Raises NotFound."""
        with self.reading() as connection:
            if version is not None:
                return _version(connection, model, version)
            current = _current(connection, model)
        if current is None:
            raise NotFound(f"no model {model!r}")
        return current

    def served(self) -> list[Version]:
        """The current version of every model name."""
        query = (
            select(*_VERSION)
            .join(
                ModelRow,
                (ModelRow.name == VersionRow.model) & (ModelRow.current == VersionRow.version),
            )
            .order_by(VersionRow.model)
        )
        with self.reading() as connection:
            return [Version(**row._mapping) for row in connection.execute(query)]

    def promotions(self, model: str) -> list[Promotion]:
        """Every change of a model's served version, the oldest first."""
        query = select(*_PROMOTION).where(PromotionRow.model == model).order_by(PromotionRow.id)
        with self.reading() as connection:
            return [Promotion(**row._mapping) for row in connection.execute(query)]

    def _promote(
        self,
        connection: Connection,
        model: str,
        version: int,
        *,
        by: str,
        reason: str,
        job: str,
        rollback: bool = False,
        attempt: int | None = None,
    ) -> None:
        """Record that a version is the served one now, and in the history of the job that it comes of."""
        connection.execute(update(ModelRow).where(ModelRow.name == model).values(current=version))
        connection.execute(
            insert(PromotionRow).values(
                model=model, version=version, at=self.clock(), by=by, reason=reason, rollback=rollback
            )
        )
        kind = EventKind.ROLLED_BACK if rollback else EventKind.PROMOTED
        detail = {"model": model, "version": version, "reason": reason}
        self._event(connection, kind, job=job, attempt=attempt, by=by, detail=detail)


def beats(value: float | None, metric: str, mode: str, current: Version) -> bool:
    """Whether a checkpoint with this value of `metric` should be served instead of the current version.

    It must be strictly better on the metric that its own job selects by. Every version keeps all of its
    checkpoint's metrics, so the current one can be asked for that metric even if its job selected by another;
    one that lacks it is beaten.
    """
    if value is None:
        return False
    served = current.metrics.get(metric)
    if served is None:
        return True
    return value > served if mode == "max" else value < served


def _lock(connection: Connection, model: str) -> None:
    """Until this transaction ends nobody else changes which version of the model is served."""
    query = select(ModelRow.name).where(ModelRow.name == model)
    connection.execute(query.with_for_update(key_share=True))


def _version(connection: Connection, model: str, version: int) -> Version:
    row: Any = connection.execute(
        select(*_VERSION).where(VersionRow.model == model, VersionRow.version == version)
    ).one_or_none()
    if row is None:
        raise NotFound(f"model {model!r} has no version {version}")
    return Version(**row._mapping)


def _current(connection: Connection, model: str) -> Version | None:
    current = connection.execute(select(ModelRow.current).where(ModelRow.name == model)).scalar_one_or_none()
    return None if current is None else _version(connection, model, current)
