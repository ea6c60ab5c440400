"""The HTTP application: typed requests to the served models, and its deployment on Ray Serve.

`create(models)` is a plain FastAPI application, so that any ASGI server can run it; `application` is the
same on Ray Serve, where `user_config` says which model versions to serve.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve._private import replica
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.serving import schemas
from cluster.serving.control import DEPLOYMENT
from cluster.serving.models import Loaded, Models, Refused

logger = logging.getLogger("textvae.serving")

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 422: "invalid"}


def create(models: Models) -> FastAPI:
    """The application that answers from `models`."""
    app = FastAPI(
        title="textvae",
        summary="Sentiment text VAEs: read a review's sentiment, embed it, rebuild it, write new ones.",
        version="1",
        responses={code: {"model": schemas.Errors} for code in (404, 413, 422, 500, 503)},
    )
    app.add_middleware(_Bounded, limit=schemas.MAX_BODY)
    app.exception_handler(Refused)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_unforeseen)

    def answer(loaded: Loaded) -> dict[str, Any]:
        return {"model": loaded.wanted.name, "version": loaded.wanted.version}

    @app.post("/v1/sentiment", summary="How likely each review is positive")
    async def sentiment(body: schemas.Texts) -> schemas.Sentiments:
        loaded = _with_latent(models.get(body.model))
        results = [
            schemas.Sentiment(
                positive=positive, label="positive" if positive >= 0.5 else "negative", truncated=truncated
            )
            for positive, truncated in await models.sentiment(loaded, _written(body.texts))
        ]
        return schemas.Sentiments(**answer(loaded), results=results)

    @app.post("/v1/embed", summary="The latent vector of each review")
    async def embed(body: schemas.Texts) -> schemas.Vectors:
        loaded = _with_latent(models.get(body.model))
        vectors = await models.embed(loaded, _written(body.texts))
        return schemas.Vectors(**answer(loaded), dimensions=len(vectors[0]), vectors=vectors)

    @app.post("/v1/reconstruct", summary="Each review as the model writes it again from its latent vector")
    async def reconstruct(body: schemas.Texts) -> schemas.Written:
        loaded = _with_latent(models.get(body.model))
        texts = await models.write(partial(loaded.predictor.reconstruct, _written(body.texts)))
        return schemas.Written(**answer(loaded), texts=texts)

    @app.post("/v1/sample", summary="New texts, written from draws of the prior")
    async def sample(body: schemas.Sampling) -> schemas.Sampled:
        loaded = models.get(body.model)
        seed = body.seed if body.seed is not None else secrets.randbelow(2**32)
        texts = await models.write(partial(loaded.predictor.sample, body.n, seed, body.temperature))
        return schemas.Sampled(**answer(loaded), seed=seed, texts=texts)

    @app.post("/v1/interpolate", summary="Texts on the straight line from one review to another")
    async def interpolate(body: schemas.Interpolation) -> schemas.Written:
        loaded = _with_latent(models.get(body.model))
        for field, text in (("a", body.a), ("b", body.b)):
            _not_blank(text, field)
        texts = await models.write(partial(loaded.predictor.interpolate, body.a, body.b, body.steps))
        return schemas.Written(**answer(loaded), texts=texts)

    @app.get("/v1/models", summary="What is served")
    async def served() -> schemas.Models:
        return schemas.Models(
            models=[_model(loaded) for loaded in models.all()],
            default=models.default_name(),
            problems=[
                schemas.Problem(name=name, version=wanted.version, digest=wanted.digest, reason=reason)
                for name, (wanted, reason) in sorted(models.problems.items())
            ],
        )

    @app.get("/healthz", summary="200 when there is a model to ask, 503 when there is none yet")
    async def healthz() -> JSONResponse:
        names = [loaded.wanted.name for loaded in models.all()]
        health = schemas.Health(status="ok" if names else "no model", models=names)
        return JSONResponse(health.model_dump(), status_code=200 if names else 503)

    return app


@serve.deployment(name=DEPLOYMENT, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
@serve.ingress()
class TextVAE:
    """One replica: the models of its `user_config`, and the application that asks them."""

    def __init__(self) -> None:
        _keep_to_loopback()
        self.models = Models()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create(self.models)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve the versions of a new `user_config`, in place; Serve calls this."""
        await self.models.serve(user_config["models"], user_config.get("default"))


application = TextVAE.bind()  # type: ignore[attr-defined]


def _keep_to_loopback() -> None:
    """On a node that is on loopback, let this replica listen there too.

    A replica opens a port for calls from other deployments on all interfaces, whatever the node's address
    is, and Serve has no setting for it. (The token guards that port, but nobody outside should see it.)
    """
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        logger.warning("cannot keep Serve's inner port to loopback with ray %s", ray.__version__)
        return
    vars(replica)["add_port_to_grpc_server"] = lambda server, address: bind(
        server, address.replace("[::]", "127.0.0.1")
    )


def _with_latent(loaded: Loaded) -> Loaded:
    """The model, if it reads reviews. Raises Refused for one that can only write."""
    if loaded.predictor.config.model.latent == 0:
        raise Refused(
            422,
            "no_latent",
            f"model {loaded.wanted.name!r} is a language model without a latent (model.latent: none): it has "
            "no vectors and no sentiment, and answers /v1/sample alone",
            "model",
        )
    return loaded


def _written(texts: list[str]) -> list[str]:
    for position, text in enumerate(texts):
        _not_blank(text, f"texts.{position}")
    return texts


def _not_blank(text: str, field: str) -> None:
    if not text.strip():
        raise Refused(422, "invalid", f"{field}: the text is blank; there is nothing to read in it", field)


def _model(loaded: Loaded) -> schemas.ServedModel:
    config = loaded.predictor.config
    return schemas.ServedModel(
        name=loaded.wanted.name,
        version=loaded.wanted.version,
        digest=loaded.wanted.digest,
        objective=config.objective.kind,
        latent=config.model.latent,
        max_length=config.vocabulary.max_length,
        metrics=dict(loaded.metrics),
    )


def _error(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    error = schemas.Errors(error=schemas.Error(code=code, message=message, field=field))
    return JSONResponse(error.model_dump(exclude_none=True), status_code=status)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return _error(error.status, error.code, error.message, error.field)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    # "body" stands first in every location; a body that is no JSON has a position behind it instead of a key.
    path = [str(part) for part in first["loc"] if part != "body"]
    field = None if first["type"] == "json_invalid" else ".".join(path) or None
    message = f"{field}: {first['msg']}"
    if field is None:
        message = "the body must be a JSON object, sent with Content-Type: application/json"
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']} at character {path[0]}"
    return _error(422, "invalid", message + (f" (and {len(others)} more)" if others else ""), field)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's word for a body that its parser of JSON gave up on
        return _error(
            422, "invalid", "the body is not JSON in UTF-8, is nested too deep, or has too long a number"
        )
    code = _CODES.get(error.status_code, "error")
    answer = _error(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    answer.headers.update(error.headers or {})  # a 405 says which methods are allowed
    return answer


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again once the answer is sent, so the log has it with its traceback.
    return _error(
        500, "internal", f"{request.method} {request.url.path}: the server failed; its log says why"
    )


class _Bounded:
    """Refuses bodies of more than `limit` bytes, before they are read when their length is told."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"")
        if told.isdigit() and int(told) > self._limit:
            await self._refuse(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            if len(body) > self._limit:
                await self._refuse(scope, receive, send)
                return
            if not message.get("more_body"):
                break
        await self._app(scope, _replay(bytes(body), receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _error(
            413, "too_large", f"the body has more than {self._limit:,} bytes; send fewer texts at once"
        )
        await answer(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives the body that was read already, then what follows."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
