"""Hostile statements, all in one batch of answers: none is right, none changes anything, none outlives its limit."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from posttrain.rewards import SqlExecutionReward
from posttrain.rewards.sql import cache, postgres, sandbox
from posttrain.rewards.sql.columns import Databases
from posttrain.rewards.sql.compare import extract_sql
from posttrain.rewards.sql.limits import GRACE_S
from posttrain.rewards.sql.places import place
from posttrain.rewards.sql.rules import SqlRules
from posttrain.rewards.sql.sandbox import execute, execute_all
from posttrain.types import RolloutBatch

LIMIT_S = 0.3
MORE_S = 2.0  # on a busy machine, to start a process again
GOLD = "SELECT name, price FROM item ORDER BY stock, name LIMIT 7"
NAMES = {
    kind: [row["name"] for row in rows]
    for kind, rows in json.loads(Path(__file__).with_name("attacks.json").read_text(encoding="utf-8")).items()
}


@dataclass(frozen=True)
class Assault:
    """What became of the attacks: rewards and executions by name, the state of the database before and after."""

    rewards: dict
    executions: dict
    seconds: float
    before: object
    after: object
    folder: Path


def rollouts(completions, row):
    size = len(completions)
    return RolloutBatch(
        input_ids=torch.zeros(size, 2, dtype=torch.long),
        attention_mask=torch.ones(size, 2, dtype=torch.bool),
        loss_mask=torch.ones(size, 2, dtype=torch.bool),
        logprobs=torch.zeros(size, 2),
        ended=torch.ones(size, dtype=torch.bool),
        completions=tuple(completions),
        extras=(row,) * size,
    )


def assault(attacks, reward, row, state, folder):
    """Score all attacks, and a right answer, in one batch."""
    seen = {}

    def recorded(statements, **limits):
        found = execute_all(statements, **limits)
        seen.update(zip((sql for _, sql in statements), found, strict=True))
        return found

    texts = [attack["sql"] for attack in attacks.values()]
    before, began = state(), time.monotonic()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "execute_all", recorded)
        *rewards, right = reward(rollouts([*texts, GOLD], row)).tolist()
    seconds = time.monotonic() - began
    assert right == 1.0
    executions = {name: seen[extract_sql(attack["sql"])] for name, attack in attacks.items()}
    return Assault(dict(zip(attacks, rewards, strict=True)), executions, seconds, before, state(), folder)


def state_of_file(path):
    """The bytes of the file, and what lies beside it."""
    return hashlib.sha256(path.read_bytes()).hexdigest(), sorted(file.name for file in path.parent.iterdir())


def state_of_server(server):
    """A hash over every row of every table and catalog with the transactions that wrote it, sequences, and files."""
    found = {}
    with server.connection() as admin:
        tables = admin.execute(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE relkind = 'r' AND nspname !~ '^pg_toast' ORDER BY 1"
        ).fetchall()
        for (table,) in tables:
            rows = f"SELECT md5(string_agg(md5(t::text || t.xmin), '' ORDER BY t.ctid)), count(*) FROM {table} t"
            found[table] = admin.execute(rows).fetchone()
        found["counter"] = admin.execute("SELECT last_value, log_cnt, is_called FROM counter").fetchone()
    data = server.folder / "data"
    found["files"] = sorted(str(file.relative_to(data)) for file in data.iterdir())
    return found


@pytest.fixture(scope="module")
def on_file(attacks, shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    reward = SqlExecutionReward(shop.parent, SqlRules(time_limit_s=LIMIT_S))
    row = {"db": shop.name, "gold": GOLD}
    return assault(attacks("sqlite", folder), reward, row, lambda: state_of_file(shop), folder)


@pytest.fixture(scope="module")
def on_server(attacks, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    reward = SqlExecutionReward(Databases(folder, server.url()), SqlRules(time_limit_s=LIMIT_S))
    return assault(attacks("postgres", folder), reward, {"gold": GOLD}, lambda: state_of_server(server), folder)


def check_attack(found, attack):
    """Those that ``may_run`` harm nobody, or are done before a quick machine's limit."""
    execution, reward = found.executions[attack["name"]], found.rewards[attack["name"]]
    assert "root:" not in str(execution.rows)
    if attack.get("may_run") and execution.error is None:
        assert reward == pytest.approx(0.2)
        return
    assert execution.rows is None, execution.rows and execution.rows[:3]
    assert execution.error
    assert execution.error_class
    assert reward == 0.0


@pytest.mark.parametrize("name", [*NAMES["both"], *NAMES["sqlite"]])
def test_an_attack_on_a_file_is_a_wrong_answer(on_file, attacks, name):
    check_attack(on_file, attacks("sqlite", on_file.folder)[name])


@pytest.mark.parametrize("name", [*NAMES["both"], *NAMES["postgres"]])
def test_an_attack_on_a_server_is_a_wrong_answer(on_server, attacks, name):
    check_attack(on_server, attacks("postgres", on_server.folder)[name])


def check_traces(found):
    assert found.before == found.after
    assert not list(found.folder.iterdir())
    assert found.seconds < len(found.rewards) * (LIMIT_S + GRACE_S) + MORE_S


def test_nothing_of_a_file_has_changed(on_file):
    check_traces(on_file)


def test_nothing_of_a_server_has_changed_and_nothing_still_runs(on_server, server):
    check_traces(on_server)
    until = time.monotonic() + 20
    with server.connection() as admin:
        while busy := admin.execute(
            "SELECT query FROM pg_stat_activity WHERE usename = 'reader' AND state <> 'idle'"
        ).fetchall():
            assert time.monotonic() < until, busy
            time.sleep(0.1)


def test_there_are_enough_attacks(attacks, tmp_path):
    for kind in ("sqlite", "postgres"):
        assert len({attack["sql"] for attack in attacks(kind, tmp_path).values()}) >= 150


def test_the_authorizer_alone_keeps_a_file_as_it_is(attacks, shop, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "_check_statement", lambda db, sql: None)
    others = [a["sql"] for a in attacks("sqlite", tmp_path).values() if not a["sql"].startswith(("SELECT", "WITH"))]
    assert len(others) > 90
    statements = [(shop, sql) for sql in others if "\ud800" not in sql]
    before = state_of_file(shop)
    execute_all(statements, time_limit_s=LIMIT_S)
    assert state_of_file(shop) == before
    assert not list(tmp_path.iterdir())
    for sql in ("CREATE TEMP TABLE evil (x)", "PRAGMA user_version = 7", "ATTACH ':memory:' AS evil"):
        assert execute(shop, sql).error_class == "forbidden"
    assert execute(shop, "SELECT COUNT(*) FROM item").rows == ((40,),)


def test_the_transaction_alone_keeps_a_server_as_it_is(attacks, server, tmp_path, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(postgres._Session, "_refuse", lambda self, sql: None)
    asked = place(server.url(), None).request()
    connections = postgres.Connections()
    before = state_of_server(server)
    for attack in attacks("postgres", tmp_path).values():
        if attack.get("is_heavy") or "\x00" in attack["sql"] or "\ud800" in attack["sql"]:
            continue
        connections.run(asked, attack["sql"], nullcontext, time_limit_s=0.1, row_limit=100)
        healthy = connections.run(asked, "SELECT COUNT(*) FROM item", nullcontext, time_limit_s=5, row_limit=100)
        assert healthy["rows"] == [(40,)], attack
    assert state_of_server(server) == before
    assert not list(tmp_path.iterdir())


def test_a_superuser_is_held_by_the_names_and_the_transaction(attacks, server, tmp_path):
    db = place(server.url(user="admin"), None, is_role_free=True)
    statements = {attack["name"]: attack["sql"] for attack in attacks("postgres", tmp_path).values()}
    quick = {name: sql for name, sql in statements.items() if not any(word in name for word in SLOW)}
    before = state_of_server(server)
    execute_all([(db, sql) for sql in quick.values()], time_limit_s=LIMIT_S)
    assert state_of_server(server) == before
    assert not list(tmp_path.iterdir())


SLOW = ("series", "endless", "cartesian", "repeat", "recursion", "regex", "pad", "json", "array", "laughs", "like")
