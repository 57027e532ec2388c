"""Servers on a thread of this process, on free ports of this machine."""

import re
import threading
import time

import httpx
import pytest
from openai import OpenAI

from posttrain.config import load_config
from posttrain.serve.server.models import load_served
from posttrain.serve.server.run import Address, make_server
from posttrain.serve.server.worker import Worker


class Running:
    """A server that listens.

    Attributes:
        url: of the interface. root: of the server. served: the models. worker: does the jobs. said: for the user.
    """

    def __init__(self, values, environment):
        self.said = []
        config = load_config({"api_port": 0, "seed": 1, **values}, command="serve")
        self.served = load_served(config, notify=self.said.append, environment=environment)
        self.worker = Worker(
            self.served,
            slots=config.serve.max_num_seqs,
            max_queue=config.serve.api_max_queue,
            notify=self.said.append,
        )
        address = Address.configured(config, environment)
        self._listener = address.listener()
        port = self._listener.getsockname()[1]
        self.root, self.url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/v1"
        listens = threading.Event()
        self.server = make_server(config, address, self.worker, hello=listens.set)
        self.worker.start()
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],), daemon=True)
        self._thread.start()
        assert listens.wait(20)

    def client(self, **options):
        """OpenAI's own, which does not try again."""
        return OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options})

    def metric(self, name, **labels):
        """A number of /metrics; 0 where there is none."""
        text = httpx.get(f"{self.root}/metrics").text
        inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        pattern = re.escape(f"posttrain_{name}" + (f"{{{inside}}}" if inside else ""))
        found = re.search(f"^{pattern} (.+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until(self, name, value, **labels):
        """Wait until a number is what it should be."""
        deadline = time.monotonic() + 20
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
            time.sleep(0.01)

    def close(self):
        """End it, requests under way included."""
        self.server.should_exit = True
        self.worker.stop()
        self._thread.join(20)
        self.worker.join()
        self._listener.close()


@pytest.fixture(scope="module")
def start():
    """Start a server with these keys; all of them end with the module."""
    running = []

    def start(environment=None, **values):
        running.append(Running(values, environment or {}))
        return running[-1]

    yield start
    for server in running:
        server.close()
