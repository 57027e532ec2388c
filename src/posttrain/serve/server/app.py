"""The endpoints."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp

import posttrain
from posttrain.config import GenerationConfig, ServeConfig
from posttrain.serve.server.answers import ChatWriter, Choice, CompletionWriter, Writer, score_list
from posttrain.serve.server.exchange import ClientGoneError, Exchange
from posttrain.serve.server.gate import Gate
from posttrain.serve.server.jobs import Piece, TextJob
from posttrain.serve.server.orders import chat_job, completion_job, score_job
from posttrain.serve.server.questions import ChatQuestion, CompletionQuestion, Question
from posttrain.serve.server.refusals import RequestRefusedError, failed, unknown_model
from posttrain.serve.server.worker import Worker

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
SCORE, SCORE_TOO = "/v1/score", "/v1/score/evaluation"
"""The second is where LLaMA-Factory has it."""

_GONE = 499


class Desk:
    """What the endpoints do.

    Args:
        worker: does the jobs. keys: limits. defaults: of what requests leave open.
    """

    def __init__(self, worker: Worker, keys: ServeConfig, defaults: GenerationConfig) -> None:
        self._worker, self._served = worker, worker.served
        self._limit_s, self._defaults = keys.api_time_limit, defaults
        self._created = int(time.time())

    async def chat(self, request: Request) -> Response:
        """An answer to a chat, or several."""
        exchange = self._exchange(request)
        question = ChatQuestion.parsed(await exchange.body())
        job = await asyncio.to_thread(chat_job, question, self._served, self._defaults, exchange.send)
        return await self._answered(exchange, question, job, ChatWriter(job))

    async def complete(self, request: Request) -> Response:
        """Completions of texts."""
        exchange = self._exchange(request)
        question = CompletionQuestion.parsed(await exchange.body())
        job = await asyncio.to_thread(completion_job, question, self._served, self._defaults, exchange.send)
        return await self._answered(exchange, question, job, CompletionWriter(job))

    async def score(self, request: Request) -> Response:
        """The reward model's scores."""
        exchange = self._exchange(request)
        body = await exchange.body()
        job = await asyncio.to_thread(score_job, body, self._served, exchange.send)
        async with aclosing(exchange.events(job)) as events:
            async for _ in events:
                pass
        num_tokens = sum(len(row) for row in job.rows if row is not None)
        return JSONResponse(score_list(self._served.scorer_name, job.scores, num_tokens))

    async def models(self) -> Response:
        """What can be asked for."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._served.names]})

    async def model(self, name: str) -> Response:
        """One of them."""
        if name not in self._served.names:
            raise unknown_model(name, self._served.names)
        return JSONResponse(self._model(name))

    async def health(self) -> Response:
        """Whether requests are answered."""
        alive = self._worker.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def metrics(self) -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(self._worker.metrics.text(), media_type="text/plain; version=0.0.4")

    def _exchange(self, request: Request) -> Exchange:
        return Exchange(request, self._worker, self._limit_s)

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "posttrain"}

    async def _answered(self, exchange: Exchange, question: Question, job: TextJob, writer: Writer) -> Response:
        if question.stream:
            chunks = _chunks(exchange, job, writer, with_usage=question.wants_usage)
            first = await anext(chunks)  # a request that is refused is no stream
            return StreamingResponse(_joined(first, chunks), media_type="text/event-stream", headers=_UNCACHED)
        choices = [Choice() for _ in range(len(job.prompts) * job.samples)]
        async with aclosing(exchange.events(job)) as events:
            async for event in events:
                choices[event.choice].add(event)
        return JSONResponse(writer.whole(choices))


_UNCACHED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _chunks(exchange: Exchange, job: TextJob, writer: Writer, *, with_usage: bool) -> AsyncGenerator[str, None]:
    """An answer as server-sent events; an error after the first of them is one of them."""
    opened: set[int] = set()
    try:
        async with aclosing(exchange.events(job)) as events:
            async for event in events:
                if event.choice not in opened:
                    opened.add(event.choice)
                    opening = writer.opening(event.choice)
                    if opening is not None:
                        yield _sent(opening)
                if not isinstance(event, Piece) or event.text or event.tokens:
                    yield _sent(writer.chunk(event))
    except ClientGoneError:
        if not opened:
            raise
        return
    except RequestRefusedError as error:
        if not opened:
            raise
        yield _sent(error.body())
        return
    if with_usage:
        yield _sent(writer.closing())
    yield "data: [DONE]\n\n"


async def _joined(first: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(rest):  # wherever the sending ends, the job does, too
        yield first
        async for chunk in rest:
            yield chunk


def _sent(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def make_app(worker: Worker, keys: ServeConfig, defaults: GenerationConfig, *, api_key: str | None) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        worker: does the jobs; started by the caller.
        keys: limits. defaults: of what requests leave open.
        api_key: that requests must bring; None lets everybody in.
    """
    desk = Desk(worker, keys, defaults)
    app = FastAPI(title="posttrain", version=posttrain.__version__)
    for path, answer, question in ((CHAT, desk.chat, ChatQuestion), (COMPLETIONS, desk.complete, CompletionQuestion)):
        app.post(path, openapi_extra=_described(question.model_json_schema()))(answer)
    for path in (SCORE, SCORE_TOO):
        app.post(path, openapi_extra=_described({"type": "object", "required": ["input"]}))(desk.score)
    app.get(MODELS)(desk.models)
    app.get(MODELS + "/{name:path}")(desk.model)
    app.get("/health")(desk.health)
    app.get("/metrics")(desk.metrics)
    _handle_errors(app)
    app.add_middleware(
        Gate,
        key=api_key,
        max_bytes=round(keys.api_max_body_mb * 1e6),
        metrics=worker.metrics,
        endpoints=(CHAT, COMPLETIONS, SCORE, SCORE_TOO, MODELS, "/health", "/metrics"),
    )
    if keys.api_allow_origins:  # outermost: refusals are to be read by pages too
        app.add_middleware(
            CORSMiddleware, allow_origins=list(keys.api_allow_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _handle_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefusedError)
        return JSONResponse(error.body(), error.status, error.headers)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=_GONE)

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(RequestRefusedError(error.status_code, said).body(), error.status_code, error.headers)

    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse(failed(f"{type(error).__name__}: {error}").body(), 500)

    handlers: dict[Any, Callable[[Request, Exception], Any]] = {
        RequestRefusedError: refused,
        ClientGoneError: gone,
        HTTPException: unrouted,
        Exception: broken,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
