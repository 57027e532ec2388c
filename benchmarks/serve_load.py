"""Requests and tokens a second of a server, and latencies, at several numbers of clients.

    python -m benchmarks.serve_load                       starts `posttrain serve` on a small model, then measures it
    python -m benchmarks.serve_load --url http://127.0.0.1:8000/v1 --model NAME     any server of OpenAI's interface

Every client asks, reads the stream to its end, and asks again. Answers have the same length in all requests, prompts
differ in length. The first requests warm the server up and are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

RESULTS = Path(__file__).resolve().parent / "results" / "serve_load.json"
CLIENTS = (1, 8, 64)
REQUESTS = {1: 3, 8: 16, 64: 64}
NEW_TOKENS = 32
SENTENCE = "The river rises in the hills, passes two towns and ends in a lake. "


@dataclass(frozen=True)
class Answer:
    """Seconds to the first text and to the end of one answer; and the tokens that its server says it has."""

    first: float
    whole: float
    tokens: int


def question(number: int) -> str:
    """Prompts of four lengths that begin differently, so that none is known from another."""
    return f"Question {number}: how long is the river? " + SENTENCE * (1 + number % 4)


async def ask(client: httpx.AsyncClient, model: str, number: int) -> Answer:
    """One streamed answer."""
    body = {
        **{"model": model, "messages": [{"role": "user", "content": question(number)}]},
        **{"temperature": 0, "max_tokens": NEW_TOKENS, "min_tokens": NEW_TOKENS},
        **{"stream": True, "stream_options": {"include_usage": True}},
    }
    began, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if not first and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.perf_counter() - began
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return Answer(first, time.perf_counter() - began, tokens)


async def measured(url: str, model: str, clients: int, total: int) -> dict[str, Any]:
    """So many clients, so many requests in all."""
    numbers = iter(range(total))
    answers: list[Answer] = []
    headers = {"Authorization": f"Bearer {os.environ.get('API_KEY', 'none')}"}
    limits = httpx.Limits(max_connections=clients)

    async def go_on(client: httpx.AsyncClient) -> None:
        for number in numbers:
            answers.append(await ask(client, model, number))

    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=600) as client:
        await ask(client, model, 0)
        began = time.perf_counter()
        await asyncio.gather(*(go_on(client) for _ in range(clients)))
        seconds = time.perf_counter() - began
    tokens = sum(answer.tokens for answer in answers)
    return {
        "clients": clients,
        "requests": len(answers),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(answers) / seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "latency_p50": quantile([answer.whole for answer in answers], 0.5),
        "latency_p95": quantile([answer.whole for answer in answers], 0.95),
        "first_token_p50": quantile([answer.first for answer in answers], 0.5),
        "first_token_p95": quantile([answer.first for answer in answers], 0.95),
    }


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return round(sorted(values)[math.ceil(share * len(values)) - 1], 3)


@contextmanager
def started(model: str, slots: int) -> Iterator[str]:
    """The address of a server of our own, which ends with the context."""
    command = [sys.executable, "-m", "posttrain", "serve"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve.json"
        file.write_text(
            json.dumps({"model_name_or_path": model, "api_port": 0, "max_num_seqs": slots}), encoding="utf-8"
        )
        server = subprocess.Popen([*command, str(file)], stderr=subprocess.PIPE, text=True, encoding="utf-8")
        assert server.stderr is not None
        try:
            said = ""
            for line in server.stderr:
                said += line
                if found := re.search(r" at (http://\S+/v1)", line):
                    yield found[1]
                    return
            raise SystemExit(f"the server did not start:\n{said}")
        finally:
            server.terminate()
            server.wait(60)
            server.stderr.close()


def machine() -> dict[str, Any]:
    """What it ran on."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    threads = os.environ.get("OMP_NUM_THREADS", "as torch chooses")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": version("torch"),
        "posttrain": version("posttrain"),
    }


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder; with --url its name there")
    parser.add_argument("--url", help="base address of a server that runs already")
    parser.add_argument("--slots", type=int, default=16, help="max_num_seqs of the server that is started")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    with nullcontext(args.url) if args.url else started(args.model, args.slots) as url:
        listed = httpx.get(f"{url}/models").json()["data"] if not args.url else [{"id": args.model}]
        rows = []
        for clients in CLIENTS:
            row = asyncio.run(measured(url, listed[0]["id"], clients, REQUESTS[clients]))
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    found = {
        "model": listed[0]["id"],
        "server": args.url or f"posttrain serve, {args.slots} slots",
        "new_tokens": NEW_TOKENS,
        "machine": machine(),
        "loads": rows,
    }
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
