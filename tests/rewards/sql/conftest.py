"""One small shop as an SQLite file and on a PostgreSQL server of the machine's own packages, started for the tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from posttrain.rewards.sql.places import place

PASSWORD = "a pass/word: @ 100%"
ADMIN_PASSWORD = "admin-secret"
_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",  # so that equal files mean that nothing was written
    "shared_buffers": "16MB",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}


@dataclass(frozen=True)
class Server:
    """A running server; ``folder`` holds its data, ``password`` is the reader's."""

    folder: Path
    port: int
    password: str = PASSWORD

    def url(self, database="shop", user="reader", password=None):
        """An address with the password in it, quoted."""
        from urllib.parse import quote

        known = {"reader": PASSWORD, "admin": ADMIN_PASSWORD}
        secret = quote(known.get(user, PASSWORD) if password is None else password, safe="")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def connection(self, database="shop", user="admin"):
        """As the superuser, every statement committed."""
        import psycopg

        known = {"reader": PASSWORD, "admin": ADMIN_PASSWORD}
        keys = {"host": "127.0.0.1", "port": self.port, "user": user, "password": known.get(user, PASSWORD)}
        return psycopg.connect(**keys, dbname=database, autocommit=True, connect_timeout=10)


def binaries():
    """The folder of initdb and postgres; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent
    folders = [folder for place in _PLACES for folder in Path("/").glob(place.lstrip("/"))]
    whole = [folder for folder in folders if (folder / "initdb").is_file() and (folder / "postgres").is_file()]
    return max(
        whole,
        key=lambda folder: [int(part) for part in folder.parts[-2].split("-") if part.isdigit()] or [0],
        default=None,
    )


def started(folder_of_binaries):
    """The server and the process that it is; see ``ended``."""
    # The server's own user has to reach its folder, so it is none of pytest's.
    folder = Path(tempfile.mkdtemp(prefix="posttrain-postgres-"))
    owner = {"user": _other_user(), "group": None} if hasattr(os, "geteuid") and os.geteuid() == 0 else {}
    owner = {key: value for key, value in owner.items() if value}
    if owner:
        shutil.chown(folder, owner["user"])
    secret = folder / "password"
    secret.write_text(ADMIN_PASSWORD, encoding="utf-8")
    secret.chmod(0o644)
    data = folder / "data"
    words = ["-D", data, "-U", "admin", "-A", "scram-sha-256", "--pwfile", secret, "-E", "UTF8", "--no-locale", "-N"]
    done = subprocess.run(
        [folder_of_binaries / "initdb", *words], cwd=folder, capture_output=True, text=True, check=False, **owner
    )
    assert done.returncode == 0, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [folder_of_binaries / "postgres", "-D", data, "-p", str(port), *options],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **owner,
        )
    server = Server(folder, port)
    _wait(server, process)
    return server, process


def ended(server, process):
    """The server stopped, its folder removed."""
    process.send_signal(signal.SIGINT)  # a fast shutdown
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    shutil.rmtree(server.folder, ignore_errors=True)


def _other_user():
    import pwd

    names = [entry.pw_name for entry in pwd.getpwall()]
    return next(name for name in ("postgres", "nobody") if name in names)


def _wait(server, process):
    import psycopg

    until = time.monotonic() + 60
    while True:
        try:
            server.connection("postgres").close()
            return
        except psycopg.OperationalError:
            log = (server.folder / "log").read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, log
            assert time.monotonic() < until, log
            time.sleep(0.1)


_REPEATED = re.compile(r"<<(.+?)\*(\d+)>>", re.DOTALL)
ITEMS = [(f"Item {i}", str(i * 7 % 120), i % 5, None if i % 3 else "x") for i in range(40)]


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """The shop as a file, with a space, a # and a ? in its path: each would end an address that is not quoted."""
    path = tmp_path_factory.mktemp("a b") / "shop #1 数据.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE item (name TEXT, price VARCHAR, stock INT, note TEXT)")
    connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", ITEMS)
    connection.execute("CREATE INDEX item_stock ON item (stock)")
    connection.commit()
    connection.close()
    return path


@pytest.fixture(scope="session")
def server(request):
    """A server with the database ``shop``, a role ``reader`` made as docs/rewards.md says, and ``writer``."""
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    running, process = started(folder)
    try:
        with running.connection("postgres") as admin:
            admin.execute("CREATE DATABASE shop")
            admin.execute("CREATE ROLE writer LOGIN PASSWORD 'w'")
        with running.connection() as admin:
            admin.execute("CREATE TABLE item (name TEXT, price VARCHAR, stock INT, note TEXT)")
            with admin.cursor() as cursor:
                cursor.executemany("INSERT INTO item VALUES (%s, %s, %s, %s)", ITEMS)
            admin.execute("CREATE INDEX item_stock ON item (stock)")
            admin.execute("CREATE SEQUENCE counter")
            admin.execute("GRANT INSERT ON item TO writer")
            for statement in documented(request.config.rootpath):
                admin.execute(statement)
        yield running
    finally:
        ended(running, process)


@pytest.fixture(scope="session")
def shop_on_server(server):
    """The same shop on the server, for ``execute``."""
    return place(server.url(), None)


def documented(root):
    """The statements by which docs/rewards.md makes the role, with our password."""
    text = (root / "docs" / "rewards.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    lines = [line for line in block.splitlines() if not line.startswith("--")]
    statements = [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
    return [statement.replace("'choose one'", "'" + PASSWORD + "'") for statement in statements]


@pytest.fixture(scope="session")
def attacks():
    """A function: kind of database and a folder for files -> the attacks on it, by name.

    ``<<text*3>>`` in the list is the text three times.
    """
    lists = json.loads(Path(__file__).with_name("attacks.json").read_text(encoding="utf-8"))

    def of(kind, folder):
        return {
            row["name"]: {**row, "sql": _REPEATED.sub(_repeated, row["sql"]).replace("{folder}", folder.as_posix())}
            for row in [*lists["both"], *lists[kind]]
        }

    return of


def _repeated(match):
    return match[1] * int(match[2])
