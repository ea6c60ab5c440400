"""Questions to the served model over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx

from jobs.cli import errors, output, service

_TIMEOUT = 60.0  # seconds
_TRIES = 3  # of a question whose server died while it had it


class NotYet(errors.Unreachable):
    """The HTTP server answers, and has no model to ask."""


def ask(path: str, body: Mapping[str, Any] | None = None, *, timeout: float = _TIMEOUT) -> Any:
    """The JSON that the served model answers: POST with a body, GET without.

    A question changes nothing, so one that is lost with the process that had it is asked again. Raises
    Unreachable if nothing answers, NotYet if nothing is served yet, NotFound for a model that is not, Wrong
    for what it refuses.
    """
    address = service.settings().serve_url
    if address is None:
        raise errors.Unreachable("the service is not up; bring it up with: textvae-jobs up")
    url = address.rstrip("/") + path
    try:
        for left in reversed(range(_TRIES)):
            try:
                with httpx.Client(timeout=timeout, trust_env=False) as client:
                    answer = client.get(url) if body is None else client.post(url, json=dict(body))
            except (httpx.ReadError, httpx.RemoteProtocolError):
                if not left:
                    raise
            else:
                if not _lost(answer):
                    break
    except httpx.HTTPError as error:
        raise errors.Unreachable(f"{url} does not answer ({error}); see: textvae-jobs status") from error
    if answer.is_success:
        return answer.json()
    reason = _reason(answer)
    if answer.status_code == 404:
        raise errors.NotFound(reason)
    if answer.status_code < 500:
        raise errors.Wrong(reason)
    raise (NotYet if answer.status_code == 503 else errors.Unreachable)(reason)


def served() -> dict[str, int]:
    """The version that is served of each model name. Raises Failure if one cannot be loaded."""
    answer = ask("/v1/models", timeout=5)
    for problem in answer["problems"]:
        raise errors.Failure(f"{problem['name']} version {problem['version']}: {problem['reason']}")
    return {str(model["name"]): int(model["version"]) for model in answer["models"]}


def wait_until_served(name: str, version: int, seconds: float) -> None:
    """Return once the HTTP server serves this version of a model name; Failure if it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = served()
        except (errors.Unreachable, errors.NotFound) as error:
            found, why = {}, error.format_message()
        else:
            why = f"it serves {found or 'nothing yet'}"
        if found.get(name) == version:
            return
        if time.monotonic() > deadline:
            raise errors.Failure(
                f"{name} version {version} was not served in {output.duration(seconds)}: {why}"
            )
        time.sleep(0.2)


def texts(answer: Any) -> list[str]:
    """The texts of an answer that holds texts."""
    return [str(text) for text in answer["texts"]]


def _lost(answer: httpx.Response) -> bool:
    """Whether it is Serve that answers, for a replica that died: the replica itself answers in JSON."""
    return answer.status_code == 500 and not answer.text.lstrip().startswith("{")


def _reason(answer: httpx.Response) -> str:
    """What the answer says is wrong."""
    try:
        told = answer.json()
    except ValueError:
        return answer.text.strip()[:300] or answer.reason_phrase
    try:
        return str(told["error"]["message"])
    except (KeyError, TypeError):
        return str(told)[:300]
