"""Addresses of databases: what they mean, and that their passwords are seen nowhere."""

import json
from pathlib import Path

import pytest

from posttrain.config import load_config
from posttrain.config.addresses import hidden, whole, without_password
from posttrain.errors import UserError
from posttrain.rewards.sql.columns import Databases
from posttrain.rewards.sql.places import place


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.delenv("POSTTRAIN_DATABASE_ADDRESSES", raising=False)


def reached(url, db=None):
    return place(url, db).request()


def test_an_address_becomes_what_libpq_takes():
    found = reached("postgresql+psycopg://me:p%40ss%2F@host:5433/shop?sslmode=require")
    named = {"host": "host", "port": 5433, "user": "me", "password": "p@ss/", "dbname": "shop", "sslmode": "require"}
    assert found["conninfo"] == named
    assert found["schema"] is None
    assert found["name"] == "postgresql+psycopg://me:***@host:5433/shop?sslmode=require"


@pytest.mark.parametrize("db", ["shop", "shop.sqlite", "databases/shop.db", "a\\shop.sqlite3"])
def test_one_data_set_serves_files_and_servers(db):
    assert reached("postgresql://me@host/{db}", db)["conninfo"]["dbname"] == "shop"
    found = reached("postgresql://me@host/all?schema={db}", db)
    assert (found["conninfo"]["dbname"], found["schema"]) == ("all", "shop")
    assert place("sqlite:///dbs/{db}/{db}.sqlite", db) == Path("dbs/shop/shop.sqlite")


def test_a_name_in_the_data_cannot_lead_elsewhere():
    found = reached("postgresql://me@host/{db}", "x?host=evil&user=admin")
    assert found["conninfo"] == {"host": "host", "user": "me", "dbname": "x?host=evil&user=admin"}


def test_a_database_of_a_chinese_name_is_called_so():
    assert reached("postgresql://me@host/{db}", "商店.sqlite")["conninfo"]["dbname"] == "商店"


@pytest.mark.parametrize(
    ("url", "db", "words"),
    [
        ("postgresql://me@host/{db}", None, "no column `db`"),
        ("mysql://me:secret@host/x", None, r"mysql://me:\*\*\*@host/x: SQL is run on PostgreSQL .* not on mysql"),
        ("host/shop", None, "is no address of a database"),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(url, db, words):
    with pytest.raises(UserError, match=words):
        place(url, db)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:s:e@c@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me@host/x?password=secret&a=b", "postgresql://me@host/x?password=***&a=b"),
        ("postgresql://me@host:5432/x", "postgresql://me@host:5432/x"),
        ("shop.sqlite", "shop.sqlite"),
    ],
)
def test_passwords_are_hidden_and_remembered(url, shown):
    assert without_password(url) == hidden(url) == shown
    assert whole(shown) == url


def test_a_configuration_never_shows_the_password():
    keys = {"model_name_or_path": "m", "database_url": "postgresql://me:secret@host/{db}"}
    config = load_config(keys, command="eval")
    assert "secret" not in json.dumps(config.to_flat()) + repr(config)
    copied = load_config(config.to_flat(), command="eval")
    assert copied == config
    db = Databases.configured(copied).of({"db": "shop"}, 1)
    assert "secret" not in repr(db) + str(db)
    assert db.request()["conninfo"]["password"] == "secret"


def test_a_copy_read_elsewhere_leaves_the_password_to_libpq():
    assert "password" not in reached("postgresql://me:***@host/shop")["conninfo"]


def test_a_row_may_name_a_server_a_file_or_nothing(tmp_path):
    (tmp_path / "shop.sqlite").touch()
    files = Databases(tmp_path)
    assert files.of({"db": "elsewhere/shop.sqlite"}, 1) == tmp_path / "shop.sqlite"
    assert str(files.of({"db": "postgresql://me:pw@host/x"}, 1)) == "postgresql://me:***@host/x"
    one = Databases(tmp_path, "postgresql://me@host/all")
    assert str(one.of({}, 1)) == str(one.of({"db": "shop"}, 2)) == "postgresql://me@host/all"
    with pytest.raises(UserError, match="row 3 of the data has no column `db`"):
        files.of({"gold": "SELECT 1"}, 3)
    with pytest.raises(UserError, match=r"row 4 of the data: .*\{db\}"):
        Databases(tmp_path, "postgresql://me@host/{db}").of({}, 4)
