"""Rollouts of given texts, and a real server on this machine whose answers a test decides."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from posttrain.types import RolloutBatch


@pytest.fixture(scope="session")
def rollouts():
    """A batch of completions; ``columns`` name -> list become extras. Token ids are the characters' codes."""

    def make(completions, prompts=None, messages=(), **columns):
        size = len(completions)
        prompts = prompts or [f"q{i}" for i in range(size)]
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        width = max(1, *map(len, texts)) if texts else 1
        ids = torch.tensor([[ord(c) for c in text] + [0] * (width - len(text)) for text in texts])
        lengths, starts = (torch.tensor(list(map(len, rows)))[:, None] for rows in (texts, prompts))
        places = torch.arange(width)[None, :]
        return RolloutBatch(
            input_ids=ids,
            attention_mask=places < lengths,
            loss_mask=(places >= starts) & (places < lengths),
            logprobs=torch.zeros(size, width),
            ended=torch.ones(size, dtype=torch.bool),
            prompts=tuple(prompts),
            completions=tuple(completions),
            extras=tuple({name: values[i] for name, values in columns.items()} for i in range(size)),
            messages=tuple(messages),
        )

    return make


class Server:
    """A server whose answers a function decides: (content, headers, number of the request from 1) -> answer.

    An answer is a JSON value, or (status, JSON value or bytes), or (status, content, headers); None breaks the
    connection off.

    Attributes:
        requests: contents so far. headers: of each.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.headers = answer, [], []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(content)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                outer.send(self, outer.answer(content, dict(self.headers), number))

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/score"

    @staticmethod
    def send(handler, answer):
        if answer is None:
            handler.connection.close()
            return
        status, content, headers = (200, answer, {}) if not isinstance(answer, tuple) else (*answer, {})[:3]
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            pass  # whoever asked did not wait


@pytest.fixture
def serve():
    """A context with a ``Server``; its port is free again afterwards."""

    @contextmanager
    def running(answer):
        server = Server(answer)
        threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.http.shutdown()
            server.http.server_close()

    return running
