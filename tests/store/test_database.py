"""Opening the database: migrations, refusals that say why, schemas and transactions."""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from store_rows import count

from workbench.errors import DatabaseError, SpecError
from workbench.settings import Settings
from workbench.store import database as module
from workbench.store.database import Database, migrations
from workbench.store.embedded import start

_numbers = itertools.count()


def at(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(url)})


@pytest.fixture
def url(server_home: Path) -> Iterator[str]:
    with start(server_home) as server:
        yield server.url


def refused(settings: Settings, secret: str = "\0") -> DatabaseError:
    with pytest.raises(DatabaseError) as caught:
        Database.open(settings)
    shown = "".join(traceback.format_exception(caught.value))
    assert secret not in shown
    return caught.value


def test_four_processes_at_once_migrate_once(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(Database.open, [settings] * 4))
    try:
        versions = [version for version, _, _ in migrations()]
        assert versions == sorted(set(versions))
        with opened[0].transaction() as connection:
            assert [row[0] for row in connection.execute("SELECT version FROM migration ORDER BY 1")] == versions
            before = connection.execute("SELECT array_agg(applied_at), min(database_id::text) FROM migration, instance")
            first = before.fetchall()
        with Database.open(settings) as again, again.transaction() as connection:
            after = connection.execute("SELECT array_agg(applied_at), min(database_id::text) FROM migration, instance")
            assert after.fetchall() == first
    finally:
        for one in opened:
            one.close()


def test_a_newer_database_is_refused(settings: Settings) -> None:
    with Database.open(settings) as database, database.transaction() as connection:
        connection.execute("INSERT INTO migration (version, name) VALUES (9999, 'from the future')")
    error = refused(settings)
    assert "has migration 9999, this version knows" in error.what
    assert settings.db_schema in error.what
    assert "newer rag-workbench" in (error.hint or "")


def test_an_old_pgvector_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OLDEST_PGVECTOR", (99, 1, 0))
    error = refused(settings)
    assert "is too old, 99.1.0 or newer is needed" in error.what
    assert "ALTER EXTENSION vector UPDATE" in (error.hint or "")


def test_a_failed_opening_leaves_nothing(settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [*migrations(), (9000, "9000_broken.sql", "CREATE TABLE half (); SELECT 1 / 0;")]
    monkeypatch.setattr(module, "migrations", lambda: broken)
    error = refused(settings)
    assert "division by zero" in error.what
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [settings.db_schema]).fetchone()
    assert found is None


def test_an_unreachable_server_is_named_without_the_password(settings: Settings) -> None:
    error = refused(at(settings, "postgresql://u:secret@127.0.0.1:1/x"), "secret")
    assert error.where == "127.0.0.1:1/x"
    assert "cannot connect" in error.what
    assert "WORKBENCH_DATABASE_URL" in (error.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        "postgres:/u:secret@host/x",
        "postgresql://u:sec%retsecret@host/x",
        "host=a password='secret",
        "postgresql://u:secret@host/x?bogus=1",
        "postgresql://u:secret@127.0.0.1:port/x",
    ],
)
def test_a_malformed_url_is_refused_without_showing_it(settings: Settings, text: str) -> None:
    assert refused(at(settings, text), "secret").hint


def test_an_empty_url_means_the_embedded_server(settings: Settings) -> None:
    with Database.open(at(settings, "")) as database:
        assert database.name == f"embedded PostgreSQL in {settings.home}"


@pytest.mark.parametrize("name", ["a; DROP SCHEMA public", 'x"y', "Upper", "1st", "a" * 41, "a-b", "ä"])
def test_schema_names_are_held_to_a_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_SCHEMA", name)
    with pytest.raises(SpecError, match="WORKBENCH_SCHEMA"):
        Settings.read()


def test_a_reserved_schema_name_is_refused(settings: Settings) -> None:
    assert "pg_mine" in refused(settings.model_copy(update={"db_schema": "pg_mine"})).what


def test_two_schemas_in_one_database_are_independent(settings: Settings, url: str) -> None:
    other = at(settings, url).model_copy(update={"db_schema": settings.db_schema + "_b"})
    with Database.open(settings) as a, Database.open(other) as b:
        with a.transaction() as connection:
            connection.execute("INSERT INTO body (digest, text) VALUES ('\\x01', 'one')")
        assert count(a, "SELECT count(*) FROM body") == 1
        assert count(b, "SELECT count(*) FROM body") == 0
        with a.transaction() as one, b.transaction() as two:
            ids = [c.execute("SELECT database_id FROM instance").fetchone() for c in (one, two)]
        assert ids[0] != ids[1]


@pytest.fixture
def role(url: str) -> Iterator[tuple[str, str]]:
    """A role that may do no more than connect, and the URL with which it does."""
    name = f"guest{os.getpid()}_{next(_numbers)}"
    parts = conninfo_to_dict(url)
    identifier = sql.Identifier(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(identifier))
    host = quote(str(parts["host"]), safe="")
    yield name, f"postgresql://{name}:secret@/{parts['dbname']}?host={host}&port={parts['port']}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(identifier))
        connection.execute(sql.SQL("DROP ROLE {}").format(identifier))


def test_a_shared_database_with_the_schema_made_beforehand(settings: Settings, url: str, role: tuple[str, str]) -> None:
    name, guest = role
    error = refused(at(settings, guest), "secret")
    assert f"schema {settings.db_schema!r} cannot be made or used: permission denied" in error.what
    with Database.open(settings.model_copy(update={"db_schema": settings.db_schema + "_first"})):
        pass  # the extension is there
    with psycopg.connect(url) as connection:
        connection.execute(
            sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(
                sql.Identifier(settings.db_schema), sql.Identifier(name)
            )
        )
    for _ in range(2):
        with Database.open(at(settings, guest)) as database:
            assert count(database, "SELECT count(*) FROM migration") == len(migrations())
            with database.transaction() as connection:
                row = connection.execute("SELECT current_user::text, current_schema()::text").fetchone()
            assert row == (name, settings.db_schema)


def test_settings_of_a_transaction_end_with_it(settings: Settings) -> None:
    shown = "SELECT pg_backend_pid(), current_setting('enable_seqscan'), current_setting('hnsw.ef_search', true)"
    with Database.open(settings) as database:
        with database.transaction() as connection:
            connection.execute("SELECT '[1]'::vector")  # the extension's settings come with its library
            connection.execute("SET LOCAL enable_seqscan = off")
            connection.execute("SET LOCAL hnsw.ef_search = 777")
            inside = connection.execute(shown).fetchone()
            assert inside is not None
            assert inside[1:] == ("off", "777")
        after = None
        for _ in range(50):  # until the pool hands out the same connection
            with database.transaction() as connection:
                after = connection.execute(shown).fetchone()
            if after is not None and after[0] == inside[0]:
                break
        assert after == (inside[0], "on", "40")
        with database._pool.connection() as connection:
            row = connection.execute("SELECT current_setting('search_path')").fetchone()
        assert row is not None
        assert settings.db_schema not in row[0]


def test_an_error_takes_the_transaction_back(settings: Settings) -> None:
    with Database.open(settings) as database:
        with pytest.raises(RuntimeError), database.transaction() as connection:
            connection.execute("INSERT INTO body (digest, text) VALUES ('\\x01', 'one')")
            raise RuntimeError
        assert count(database, "SELECT count(*) FROM body") == 0


def test_a_cut_connection_is_a_database_error_and_the_next_works(settings: Settings, url: str) -> None:
    with Database.open(settings) as database:
        with pytest.raises(DatabaseError, match="the connection was lost"), database.transaction() as connection:
            with psycopg.connect(url) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            connection.execute("SELECT 1")
        assert count(database, "SELECT 1") == 1
