"""The connection pool, the schema and its numbered migrations."""

from __future__ import annotations

import contextlib
import importlib.resources
import re
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from psycopg import Connection, OperationalError, ProgrammingError, sql
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from workbench.errors import DatabaseError
from workbench.settings import Settings

if TYPE_CHECKING:
    from workbench.store.embedded import Server

OLDEST_PGVECTOR = (0, 8, 0)
"""Iterative index scans, which the search guards need, came with pgvector 0.8.0."""

PATIENCE = 30.0
"""Seconds that a connection is waited for."""
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")
_LOCK = 7_305_241_911_274  # names this application among the advisory locks of a shared database


class Database:
    """A pool of connections that see one schema. Open with `Database.open(settings)`."""

    def __init__(
        self, pool: ConnectionPool[Connection[Any]], schema: str, path: str, server: Server | None, name: str
    ) -> None:
        self._pool, self.schema, self._path, self._server, self.name = pool, schema, path, server, name
        self._patience = PATIENCE

    @classmethod
    def open(cls, settings: Settings) -> Database:
        """Connect (starting the embedded server where no URL is set), migrate, and check the extension.

        Raises:
            DatabaseError: unreachable, pgvector missing or too old, or a schema newer than this code.
        """
        server: Server | None = None
        url = settings.database_url.get_secret_value() if settings.database_url else ""
        if not url:
            from workbench.store.embedded import start

            server = start(settings.home)
            url = server.url
        name = _public_name(url) if server is None else f"embedded PostgreSQL in {settings.home}"
        try:
            path = _prepare(url, settings.db_schema, name)
            pool: ConnectionPool[Connection[Any]] = ConnectionPool(
                url,
                min_size=1,
                max_size=settings.pool_size,
                timeout=30,
                check=_check(server),
                configure=_configure(path),
                open=True,
                name="workbench",
            )
        except BaseException:
            if server is not None:
                server.close()
            raise
        return cls(pool, settings.db_schema, path, server, name)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """A connection in one transaction, committed when the block ends without an error.

        The search path is set for the transaction, not the session, so that a pooler in between does no harm.

        Raises:
            DatabaseError: no connection could be had or it was cut.
        """
        try:
            with self._pool.connection(self._patience) as connection:
                self._patience = PATIENCE
                _set_path(connection, self._path)
                yield connection
        except PoolTimeout as error:
            self._patience = 1.0  # whoever clears up behind this error must not wait as long again, one after the other
            if self._server is not None:
                self._server.ensure()
            raise DatabaseError("no connection within 30 s", where=self.name, hint="is the server up?") from error
        except OperationalError as error:
            if self._server is not None:
                self._server.ensure()
            lost = error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
            raise DatabaseError(
                f"{'the connection was lost' if lost else 'the server refused'}: {_first_line(error)}",
                where=self.name,
                hint="finished items are kept; run the same command again",
            ) from error

    def close(self) -> None:
        """Close the pool; the embedded server stops when its last owner has closed."""
        self._pool.close()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(server: Server | None) -> Any:
    """The pool's own check; a dead connection brings the embedded server back before the pool tries again."""

    def check(connection: Connection[Any]) -> None:
        try:
            ConnectionPool.check_connection(connection)
        except OperationalError:
            if server is not None:
                server.ensure()
            raise

    return check


def _public_name(url: str) -> str:
    try:
        parts = conninfo_to_dict(url)
    except ProgrammingError:
        # What libpq says about it quotes the text, and with it a password.
        raise DatabaseError(
            "this is not a PostgreSQL URL",
            where="WORKBENCH_DATABASE_URL",
            hint="expected postgresql://user:password@host:port/database, with %XX for special characters",
        ) from None
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _set_path(connection: Connection[Any], path: str) -> None:
    connection.execute("SELECT set_config('search_path', %s, true)", [path])


def _configure(path: str) -> Any:
    def configure(connection: Connection[Any]) -> None:
        from pgvector.psycopg import register_vector

        connection.prepare_threshold = None  # a pooler may hand the next statement to another backend
        with connection.transaction():
            _set_path(connection, path)
            register_vector(connection)

    return configure


def _prepare(url: str, schema: str, name: str) -> str:
    """Check the extension and bring the schema up to date, in one transaction under a lock.

    Returns the search path: our schema, the extension's (hosted servers put it in one of its own), public.
    """
    try:
        connection = Connection.connect(url, connect_timeout=10, **_application(url))
    except OperationalError as error:
        raise DatabaseError(
            f"cannot connect: {_first_line(error)}",
            where=name,
            hint="check WORKBENCH_DATABASE_URL, or unset it to use the embedded server",
        ) from None
    try:
        with connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            path = f"{schema}, {_require_pgvector(connection, name)}, public"
            _migrate(connection, schema, path, name)
    except pg.InsufficientPrivilege as error:
        raise DatabaseError(
            f"schema {schema!r} cannot be made or used: {_first_line(error)}",
            where=name,
            hint=f"ask for CREATE SCHEMA {schema} AUTHORIZATION your role, or set WORKBENCH_SCHEMA to a schema you own",
        ) from error
    except pg.Error as error:
        raise DatabaseError(f"schema {schema!r} cannot be prepared: {_first_line(error)}", where=name) from error
    return path


def _application(url: str) -> dict[str, Any]:
    given = conninfo_to_dict(url)
    return {} if "application_name" in given else {"application_name": "workbench"}


_FIND_PGVECTOR = (
    "SELECT extversion, quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
    " WHERE extname = 'vector'"
)


def _require_pgvector(connection: Connection[Any], name: str) -> str:
    """Create pgvector where it is missing; returns the schema it stands in, quoted."""
    row = connection.execute(_FIND_PGVECTOR).fetchone()
    if row is None:
        try:
            with connection.transaction():
                connection.execute("CREATE EXTENSION vector WITH SCHEMA public")
        except pg.Error as error:
            raise DatabaseError(
                f"pgvector is not there and cannot be created: {_first_line(error)}",
                where=name,
                hint="install pgvector on the server, then CREATE EXTENSION vector as a superuser",
            ) from None
        row = connection.execute(_FIND_PGVECTOR).fetchone()
    assert row is not None
    version = tuple(int(part) for part in re.findall(r"\d+", row[0]))
    if version < OLDEST_PGVECTOR:
        wanted = ".".join(map(str, OLDEST_PGVECTOR))
        raise DatabaseError(
            f"pgvector {row[0]} is too old, {wanted} or newer is needed",
            where=name,
            hint="upgrade it, then ALTER EXTENSION vector UPDATE",
        )
    return str(row[1])


def migrations() -> list[tuple[int, str, str]]:
    """(version, file name, SQL) of every migration, in order."""
    folder = importlib.resources.files("workbench.store") / "migrations"
    found = [(match, entry) for entry in folder.iterdir() if (match := _MIGRATION.fullmatch(entry.name))]
    return sorted((int(match[1]), entry.name, entry.read_text(encoding="utf-8")) for match, entry in found)


def _migrate(connection: Connection[Any], schema: str, path: str, name: str) -> None:
    identifier = sql.Identifier(schema)
    # Looked up first: in a shared database CREATE SCHEMA may be the administrator's, done beforehand.
    exists = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
    if exists is None:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(identifier))
    _set_path(connection, path)
    connection.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {}.migration"
            " (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        ).format(identifier)
    )
    rows = connection.execute(sql.SQL("SELECT version FROM {}.migration").format(identifier)).fetchall()
    applied = {row[0] for row in rows}
    known = migrations()
    newest = known[-1][0]
    if applied and max(applied) > newest:
        raise DatabaseError(
            f"schema {schema!r} has migration {max(applied)}, this version knows {newest}",
            where=name,
            hint="install a newer rag-workbench, or set WORKBENCH_SCHEMA to another name",
        )
    for version, file, text in known:
        if version not in applied:
            connection.execute(text.encode())  # bytes: several statements, no parameters
            connection.execute("INSERT INTO migration (version, name) VALUES (%s, %s)", [version, file])
