"""A real PostgreSQL server as the judge: values, roles, lost connections, and what a user can get wrong."""

import subprocess
import sys
import threading

import pytest
import torch

from posttrain.errors import RewardError, UserError
from posttrain.rewards import SqlExecutionReward
from posttrain.rewards.sql import postgres
from posttrain.rewards.sql.columns import Databases
from posttrain.rewards.sql.places import place
from posttrain.rewards.sql.sandbox import check_place, execute
from posttrain.types import RolloutBatch


def test_values_are_numbers_bytes_and_text(shop_on_server):
    sql = (
        "SELECT count(*), 1.50, 2.0, 1e30::numeric, 12345678901234567890::numeric, true, false, 'NaN'::float8, "
        "'-Infinity'::float4, '\\x00ff'::bytea, ARRAY[1, 2], DATE '2020-03-01', NULL, '数据', '{\"a\": 1}'::jsonb, "
        "sum(stock), avg(stock) FROM item"
    )
    (row,) = execute(shop_on_server, sql).rows
    assert row[:10] == (40, 1.5, 2, 1e30, 1.2345678901234567e19, 1, 0, "NaN", float("-inf"), b"\x00\xff")
    assert row[10:] == ("{1,2}", "2020-03-01", None, "数据", '{"a": 1}', 80, 2)
    assert [type(cell) for cell in row[:3]] == [int, float, int]


def test_columns_and_empty_results(shop_on_server):
    found = execute(shop_on_server, "SELECT name, stock AS 存货 FROM item WHERE false;")
    assert (found.rows, found.columns, found.error) == ((), ("name", "存货"), None)


@pytest.mark.parametrize(
    "sql", ["TABLE item", "(SELECT 1) UNION (SELECT 2)", "VALUES (1)", "WITH x AS (SELECT 1) TABLE x"]
)
def test_queries_of_this_dialect_run(shop_on_server, sql):
    assert execute(shop_on_server, sql).error is None


@pytest.mark.parametrize(
    ("sql", "error_class"),
    [
        ("", "empty"),
        ("DROP TABLE item", "not_a_query"),
        ("SELECT x FROM nowhere", "no_such_table"),
        ("SELECT colour FROM item", "no_such_column"),
        ("SELECT FROM item WHERE", "syntax"),
        ("SELECT 1; SELECT 2", "multiple_statements"),
        ("SELECT pg_sleep(9)", "forbidden"),
        ("SELECT PG_SLEEP (9)", "forbidden"),
        ("SELECT * FROM pg_authid", "forbidden"),
        ("SELECT COUNT(*) FROM item a, item b, item c, item d, item e, item f, item g", "timeout"),
        ("SELECT generate_series(1, 101)", "too_many_rows"),
        ("SELECT 1 / 0", "other"),
    ],
)
def test_errors_have_classes(shop_on_server, sql, error_class):
    found = execute(shop_on_server, sql, time_limit_s=1.0, row_limit=100)
    assert found.error_class == error_class
    assert "\n" not in found.error


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
def test_a_value_beyond_the_memory_of_a_process_is_an_error(shop_on_server):
    found = execute(shop_on_server, "SELECT repeat('x', 600000000)", time_limit_s=30)
    assert found.error_class == "too_big", found.error
    assert execute(shop_on_server, "SELECT 1").rows == ((1,),)


def test_random_numbers_are_no_side_effect(shop_on_server):
    assert execute(shop_on_server, "SELECT random() < 2, clock_timestamp() IS NULL").rows == ((1, 0),)


def test_a_function_of_the_user_runs_once_it_is_declared_stable(server, shop_on_server):
    with server.connection() as admin:
        admin.execute("CREATE FUNCTION vat(x FLOAT) RETURNS FLOAT LANGUAGE sql AS 'SELECT x * 1.19'")
        try:
            refused = execute(shop_on_server, "SELECT vat(100)")
        finally:
            admin.execute("DROP FUNCTION vat")
    # sessions that are open know the names of before; the next ones know them all
    assert refused.error_class in (None, "forbidden")
    with server.connection() as admin:
        admin.execute("CREATE FUNCTION tax(x FLOAT) RETURNS FLOAT LANGUAGE sql IMMUTABLE AS 'SELECT x * 1.19'")
        try:
            assert execute(shop_on_server, "SELECT tax(100)").rows == ((119,),)
        finally:
            admin.execute("DROP FUNCTION tax")


@pytest.mark.parametrize(
    ("user", "words"),
    [("admin", "the role 'admin' is a superuser"), ("writer", "the role 'writer' may write to public.item")],
)
def test_a_role_that_could_do_more_is_refused_unless_it_is_allowed(server, user, words):
    password = {"writer": "w"}.get(user)
    with pytest.raises(UserError, match=words):
        check_place(place(server.url(user=user, password=password), None))
    allowed = place(server.url(user=user, password=password), None, is_role_free=True)
    check_place(allowed)
    if user == "admin":
        assert execute(allowed, "WITH x AS (DELETE FROM item RETURNING 1) SELECT * FROM x").error_class == "forbidden"


@pytest.mark.parametrize(
    ("grant", "revoke", "words"),
    [
        ("GRANT admin TO reader", "REVOKE admin FROM reader", "may become the superuser admin"),
        ("ALTER ROLE reader CREATEDB", "ALTER ROLE reader NOCREATEDB", "may create roles or databases"),
        ("GRANT UPDATE (stock) ON item TO reader", "REVOKE UPDATE (stock) ON item FROM reader", "write to public.item"),
        ("GRANT DELETE ON item TO PUBLIC", "REVOKE DELETE ON item FROM PUBLIC", "write to public.item"),
        ("GRANT writer TO reader", "REVOKE writer FROM reader", "write to public.item"),
        ("GRANT USAGE ON SEQUENCE counter TO reader", "REVOKE USAGE ON SEQUENCE counter FROM reader", "move the seq"),
        ("GRANT CREATE ON SCHEMA public TO reader", "REVOKE CREATE ON SCHEMA public FROM reader", "objects in the sch"),
        ("GRANT CREATE ON DATABASE shop TO reader", "REVOKE CREATE ON DATABASE shop FROM reader", "create schemas"),
        (
            "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO reader",
            "REVOKE EXECUTE ON FUNCTION pg_read_file(text) FROM reader",
            "may call pg_read_file",
        ),
        ("GRANT pg_write_all_data TO reader", "REVOKE pg_write_all_data FROM reader", "member of pg_write_all_data"),
    ],
)
def test_every_right_beyond_reading_is_found(server, grant, revoke, words):
    with server.connection() as admin:
        admin.execute(grant)
        try:
            with pytest.raises(postgres.PlaceError, match=words):
                postgres._Session(place(server.url(), None).request())
        finally:
            admin.execute(revoke)
    postgres._Session(place(server.url(), None).request()).close()


def test_a_statement_leaves_nothing_to_the_next(server, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(postgres._Session, "_refuse", lambda self, sql: None)
    session = postgres._Session(place(server.url(), None).request())

    def run(sql):
        return session.run(sql, nullcontext, 2.0, 10).get("rows")

    before = run("SELECT current_setting('work_mem'), current_setting('statement_timeout')")
    assert before == [("16MB", "2s")]
    run("SELECT set_config('work_mem', '64MB', false), set_config('statement_timeout', '0', false)")
    run("SELECT pg_advisory_lock(7)")
    assert run("SELECT current_setting('work_mem'), current_setting('statement_timeout')") == before
    assert run("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    session.close()


def test_a_schema_for_each_database_of_the_data(server):
    with server.connection() as admin:
        admin.execute("CREATE SCHEMA zoo")
        admin.execute("CREATE TABLE zoo.animal AS SELECT 'cat' AS name")
        admin.execute("GRANT USAGE ON SCHEMA zoo TO reader; GRANT SELECT ON zoo.animal TO reader")
    url = server.url() + "?schema={db}"
    assert execute(place(url, "dbs/zoo.sqlite"), "SELECT name FROM animal").rows == (("cat",),)
    assert execute(place(url, "public"), "SELECT name FROM animal").error_class == "no_such_table"
    with pytest.raises(UserError, match=r"no schema 'circus' in this database \(there are: .*zoo"):
        check_place(place(url, "circus"))
    with server.connection() as admin:
        admin.execute("DROP SCHEMA zoo CASCADE")


def test_what_a_user_gets_wrong_is_said_without_the_password(server):
    cases = (
        (server.url(password="wrong-one"), "does not accept the password .*PGPASSWORD"),
        (server.url("nowhere"), "no such database on the server"),
        (server.url().replace(f":{server.port}/", ":1/"), "no connection to the server"),
        (server.url() + "?sslmode=sometimes", "sslmode"),
    )
    for url, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            check_place(place(url, None))
        assert "wrong-one" not in str(caught.value)
        assert "100%" not in str(caught.value)


def test_a_session_that_the_server_ended_is_opened_again(server, shop_on_server):
    assert execute(shop_on_server, "SELECT 1").rows == ((1,),)
    with server.connection() as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'")
    for _ in range(4):  # whichever worker it is
        assert execute(shop_on_server, "SELECT 1").rows == ((1,),)


def batch(completions, row):
    size = len(completions)
    return RolloutBatch(
        input_ids=torch.zeros(size, 3, dtype=torch.long),
        attention_mask=torch.ones(size, 3, dtype=torch.bool),
        loss_mask=torch.ones(size, 3, dtype=torch.bool),
        logprobs=torch.zeros(size, 3),
        ended=torch.ones(size, dtype=torch.bool),
        completions=tuple(completions),
        extras=(row,) * size,
    )


def test_answers_are_judged_by_the_server(server, tmp_path):
    reward = SqlExecutionReward(Databases(tmp_path, server.url("{db}")))
    row = {"db": "shop.sqlite", "gold": "SELECT name FROM item WHERE stock >= 4"}
    reward.check([row])
    answers = ["SELECT name FROM item WHERE stock = 4", "SELECT name FROM item", "SELECT nothing", "no SQL"]
    assert reward(batch(answers, row)).tolist() == pytest.approx([1.0, 0.2, 0.0, 0.0])
    with pytest.raises(RewardError, match=r'does not run on postgresql://reader:.*: relation "gone" does not exist'):
        reward(batch(answers, {**row, "gold": "SELECT 1 FROM gone"}))
    with pytest.raises(UserError, match="no such database on the server"):
        reward.check([row, {**row, "db": "elsewhere"}])


def test_processes_end_with_the_program_that_began_them(server, tmp_path):
    code = (
        "import sys; from posttrain.rewards.sql.places import place; from posttrain.rewards.sql.sandbox import execute;"
        "print(execute(place(sys.argv[1], None), 'SELECT 7').rows)"
    )
    path = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}", server.url()]
    done = subprocess.run(path, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("((7,),)", "")
    assert threading.active_count() < 200
