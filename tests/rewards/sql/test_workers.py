"""The processes that run SQL: light, warm, replaced, and never more than there may be."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from posttrain.errors import RewardError, UserError
from posttrain.rewards.sql import workers
from posttrain.rewards.sql.sandbox import execute, execute_all
from posttrain.rewards.sql.workers import EndedError, Pool, limit_of, pool


def request(path, sql, limit_s=5.0):
    return {"path": str(path), "sql": sql, "time_limit_s": limit_s, "row_limit": 100}


@pytest.fixture
def one():
    """A pool of one worker of its own."""
    own = Pool(1)
    yield own
    own.close()


def process(own):
    (worker,) = own._idle
    return worker.pid


def test_a_worker_stays_warm(one, shop):
    for number in range(3):
        assert one.answer(request(shop, f"SELECT {number}"), 60)["rows"] == [[number]]
    first = process(one)
    assert one.answer(request(shop, "SELECT missing"), 60)["error_class"] == "no_such_column"
    assert process(one) == first


def test_one_that_ended_while_idle_is_replaced(one, shop):
    one.answer(request(shop, "SELECT 1"), 60)
    first = process(one)
    one._idle[0].end()
    one._idle[0]._process.wait()
    assert one.answer(request(shop, "SELECT 2"), 60)["rows"] == [[2]]
    assert process(one) != first


def test_a_call_that_nothing_interrupts_ends_its_process_in_time(one, shop):
    endless = "SELECT instr(hex(zeroblob(499000)), hex(zeroblob(240000)) || '1')"
    with pytest.raises(EndedError) as caught:
        one.answer(request(shop, endless, 0.2), 25)
    assert 0.2 <= caught.value.seconds < 20  # the 25 s from outside were not needed
    assert one.answer(request(shop, "SELECT 1"), 60)["rows"] == [[1]]


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_process_that_cannot_end_itself_is_ended_from_outside(one, shop):
    one.answer(request(shop, "SELECT 1"), 60)
    os.kill(process(one), signal.SIGSTOP)
    with pytest.raises(EndedError):
        one.answer(request(shop, "SELECT 1"), 0.5)
    assert one.answer(request(shop, "SELECT 1"), 60)["rows"] == [[1]]


def test_many_threads_share_few_workers(shop):
    own = Pool(2)
    seen = []

    def ask(number):
        seen.append(own.answer(request(shop, f"SELECT {number}"), 60)["rows"] == [[number]])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 40
    assert len(own._idle) <= 2
    own.close()


def test_executions_come_in_the_order_of_their_statements(shop):
    found = execute_all([(shop, f"SELECT {number}" if number % 7 else "DROP TABLE item") for number in range(100)])
    assert [execution.rows for execution in found] == [((n,),) if n % 7 else None for n in range(100)]


def test_a_user_mistake_in_a_batch_is_raised(shop, tmp_path):
    with pytest.raises(UserError, match=r"gone\.sqlite"):
        execute_all([(shop, "SELECT 1"), (tmp_path / "gone.sqlite", "SELECT 1")])


def test_memory_is_bounded_where_the_system_can(shop):
    """The limits are those of the process: 512 MB of memory beyond the start, no byte of a file."""
    code = (
        "import json, resource; from posttrain.rewards.sql.worker import limit_process; limit_process(); "
        "print(json.dumps([resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_FSIZE)[0]]))"
    )
    if sys.platform != "linux":
        pytest.skip("only Linux holds a process to its memory")
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    memory, files = json.loads(done.stdout)
    assert files == 0
    assert 512 * 2**20 <= memory < 4 * 2**30


def test_a_worker_needs_no_torch():
    code = "import sys; import posttrain.rewards.sql.worker; print(sorted({'torch', 'yaml', 'numpy'} & {*sys.modules}))"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]"


def test_a_forked_process_has_workers_of_its_own(monkeypatch):
    mine = pool()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    try:
        assert pool() is not mine
    finally:
        workers._pools.pop(-1).close()


def test_from_outside_there_is_time_to_connect():
    assert limit_of(2.0, is_server=False) < 5 < limit_of(2.0, is_server=True)


def test_a_process_that_cannot_begin_says_why(monkeypatch, shop):
    monkeypatch.setattr(workers, "_BOOT", "raise SystemExit('no interpreter for you')")
    own = Pool(1)
    with pytest.raises(RewardError, match="ends as soon as it begins: no interpreter for you"):
        own.answer(request(shop, "SELECT 1"), 60)
    own.close()


def test_a_file_that_another_program_locks_is_no_wrong_answer(tmp_path):
    import sqlite3

    path = tmp_path / "busy.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"busy\.sqlite: another program holds a lock on it"):
        execute(path, "SELECT x FROM t", time_limit_s=0.2)
    connection.execute("ROLLBACK")
    connection.close()
    assert execute(path, "SELECT x FROM t").rows == ()


def test_bytes_infinities_and_texts_come_back_as_they_are(shop):
    sql = "SELECT x'00ff', 9e999, -9e999, 'ab' || char(0) || '数', 9223372036854775807, NULL, CAST(x'ff41' AS TEXT)"
    rows = execute(shop, sql).rows
    assert rows == ((b"\x00\xff", float("inf"), float("-inf"), "ab\x00数", 2**63 - 1, None, "\ufffdA"),)


def test_a_file_in_wal_mode_is_read_without_a_trace(tmp_path):
    import sqlite3

    path = tmp_path / "wal.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (4)")
    connection.commit()
    assert execute(path, "SELECT x FROM t").rows == ((4,),)  # beside its writer
    connection.close()
    before = sorted(tmp_path.iterdir())
    assert execute(path, "SELECT x FROM t").rows == ((4,),)
    assert sorted(tmp_path.iterdir()) == before == [path]
