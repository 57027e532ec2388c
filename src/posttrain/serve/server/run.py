"""A server from a configuration: its address, its models, its life."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType

import uvicorn

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.serve.server.app import make_app
from posttrain.serve.server.models import Served, load_served
from posttrain.serve.server.worker import Worker

Notify = Callable[[str], None]

INTERRUPTED = 130
_LAST_WORDS = 2.0
"""Seconds that requests get, after their time to finish, to hear that they were cut off."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens, and the key it asks for."""

    host: str
    port: int
    key: str | None

    @classmethod
    def configured(cls, config: RunConfig, environment: Mapping[str, str]) -> Address:
        """From the keys, and from the environment where a key is not set.

        Raises:
            UserError: API_PORT is no port.
        """
        keys = config.serve
        host, port = keys.api_host, keys.api_port
        if "api_host" not in config.sources:
            host = environment.get("API_HOST") or host
        if "api_port" not in config.sources and (given := environment.get("API_PORT")):
            if not given.isdecimal() or int(given) > 65535:
                raise UserError(f"the environment's API_PORT is {given!r}; a port is a number from 0 to 65535")
            port = int(given)
        return cls(host=host, port=port, key=keys.api_key or environment.get("API_KEY") or None)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def listener(self) -> socket.socket:
        """A socket that has the port, and does not listen yet.

        Raises:
            UserError: the port is taken or not allowed, or this machine has no such address.
        """
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise UserError(f"api_host: {self.host} is no address ({error.strerror or error})") from error
        found = socket.socket(family, kind, protocol)
        try:
            if os.name != "nt":  # there it would take a port that somebody else listens on
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(place)
        except OSError as error:
            found.close()
            raise UserError(self._refusal(error)) from error
        return found

    def _refusal(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return (
                f"port {self.port} of {self.host} is in use, perhaps by another server; stop that one, or choose "
                f"another port: api_port={self.port % 65535 + 1} (0 is any free one)"
            )
        if error.errno == errno.EACCES:
            return f"port {self.port} of {self.host} may not be used by this user; choose one above 1023: api_port=8000"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"api_host: this machine has no address {self.host}; write 127.0.0.1, or 0.0.0.0 for all of its own"
        return f"port {self.port} of {self.host} cannot be used: {error.strerror or error}"


class Server(uvicorn.Server):
    """uvicorn's, which says where it is and lets requests finish before it ends.

    Attributes:
        stopped_by: the signal that ended it.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, *, grace: float, hello: Callable[[], None]) -> None:
        """Take what to serve.

        Args:
            config: of uvicorn. worker: does the jobs.
            grace: seconds that requests get to finish.
            hello: called when the server listens.
        """
        super().__init__(config)
        self.stopped_by: int | None = None
        self._worker, self._grace, self._hello = worker, grace, hello

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._hello()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests; those under way have a while to finish, then they are told."""
        asyncio.get_running_loop().call_later(self._grace, self._worker.stop)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the server; how it ended is for the caller to say."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Remember what ended it; a second Ctrl-C waits for nobody."""
        self.stopped_by = sig
        if self.should_exit:
            self.force_exit = True
            self._worker.stop()
        self.should_exit = True


def serve(config: RunConfig, *, notify: Notify, environment: Mapping[str, str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        config: names the models, the address and the limits.
        notify: receives sentences for the user.
        environment: None is that of the process.

    Returns:
        The exit status: 130 after Ctrl-C, else 0.

    Raises:
        UserError: an address that cannot be had, or models that cannot be served.
    """
    environment = os.environ if environment is None else environment
    for sentence in config.warnings:
        notify(sentence)
    address = Address.configured(config, environment)
    listener = address.listener()
    try:
        served = load_served(config, notify=notify, environment=environment)
        worker = Worker(served, slots=config.serve.max_num_seqs, max_queue=config.serve.api_max_queue, notify=notify)
        server = make_server(config, address, worker, hello=lambda: notify(_hello(address, listener, served)))
        worker.start()
        try:
            server.run(sockets=[listener])
        finally:
            worker.stop()
            worker.join()
    finally:
        listener.close()
    return INTERRUPTED if server.stopped_by == signal.SIGINT else 0


def make_server(config: RunConfig, address: Address, worker: Worker, *, hello: Callable[[], None]) -> Server:
    """A server that has not begun; ``worker`` is started by the caller."""
    keys = config.serve
    app = make_app(worker, keys, config.generation, api_key=address.key)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # whole seconds are what uvicorn takes
        timeout_graceful_shutdown=int(keys.api_grace + _LAST_WORDS) + 1,
    )
    return Server(settings, worker, grace=keys.api_grace, hello=hello)


def _hello(address: Address, listener: socket.socket, served: Served) -> str:
    port = listener.getsockname()[1]
    host = f"[{address.host}]" if ":" in address.host else address.host
    shown = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    text = f"serving {', '.join(served.names)} at http://{shown}:{port}/v1"
    if not address.is_local:
        text += ", and to the networks of this machine"
        text += "" if address.key else " WITHOUT A KEY (set api_key, or API_KEY in the environment)"
    return f"{text}; Ctrl-C ends."
