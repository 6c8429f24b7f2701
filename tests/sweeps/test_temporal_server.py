"""The embedded Temporal server is started, shared, killed and abandoned; what is left is counted by psutil.

The fast tests run a program of a few lines in its place, the slow ones the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ServiceError
from workbench.processes import living_owners
from workbench.sweeps.temporal import connection, server, watch

if TYPE_CHECKING:
    from temporalio.client import Client

FAKE = """#!{python} -IS
import json, os, pathlib, signal, socket, sys, time
home, words = pathlib.Path(__file__).parent, sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
if words[:3] == ["operator", "cluster", "health"]:
    host, port = option("--address").split(":")
    print(socket.create_connection((host, int(port)), 5).recv(99).decode())
    sys.exit()
with (home / "starts").open("a") as file:
    file.write(json.dumps([os.getpid(), words, dict(os.environ)]) + "\\n")
told, database = (home / "told").read_text(), pathlib.Path(option("--db-filename"))
if told.startswith("fail "):
    sys.exit(told[5:])
if told == "half-made" and len((home / "starts").read_text().splitlines()) == 1:
    database.touch()
    os.kill(os.getpid(), signal.SIGKILL)
if database.exists() and not database.read_text():
    sys.exit("no such table")
with database.open("a") as file:
    file.write("x")
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((option("--ip"), int(option("--port"))))
listener.listen(64)
while True:
    client = listener.accept()[0]
    with client:
        try:
            client.send(b"NOT_SERVING" if told == "unwell" else b"SERVING")
            client.recv(1)  # whoever closes first keeps the port busy for a while: the client
        except OSError:
            pass
"""

OWNER = """
import sys
from pathlib import Path
from workbench.sweeps.temporal import server
print(server.start(Path(sys.argv[1])).address, flush=True)
sys.stdin.readline()
"""


class Fake:
    """A program in the place of Temporal's, and what it was told and did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "temporal").write_text(FAKE.format(python=sys.executable))
        (folder / "temporal").chmod(0o700)
        self.tell("")

    def tell(self, what: str) -> None:
        (self.folder / "told").write_text(what)

    def starts(self) -> list[Any]:
        """Pid, arguments and environment of each start."""
        file = self.folder / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Owner:
    """Another process that owns the server until it is let go or killed."""

    def __init__(self, home: Path, *, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self.read() if wait else ""

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def leave(self) -> None:
        self.process.communicate("\n")
        assert self.process.returncode == 0


def processes(home: Path) -> list[psutil.Process]:
    """Watchers by the folder in their command line, programs by their working folder."""
    folder, found = str(home.resolve() / "temporal"), []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        known = folder in (process.info["cmdline"] or []) or process.info["cwd"] in (folder, f"{folder} (deleted)")
        if known and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        time.sleep(0.02)


def pid_of(record: str) -> int:
    return int(record.partition("-")[0])


def watcher(home: Path) -> int:
    state = watch.running(home / "temporal")
    assert state
    return pid_of(state.watcher)


def program(home: Path) -> int:
    return pid_of(watch.read_program(home / "temporal"))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home that is looked at for leftovers when the test ends."""
    place = tmp_path / "a home"
    yield place
    left = processes(place)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    one = Fake(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(one.folder), prepend=os.pathsep)
    return one


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no Temporal server."""
    for name in [name for name in os.environ if name.startswith("TEMPORAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "temporal.toml"))
    return monkeypatch


# --- the server's life, with a fake program -------------------------------------------------------


def test_one_server_for_all_shares_of_a_home_and_none_after_the_last(
    home: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "elsewhere:7233")
    home.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(home.parent)
    assert server.address_of(Path(home.name)) is None
    with server.start(Path(home.name)) as first:
        with server.start(home) as second:
            assert first.address == second.address == server.address_of(Path(home.name))
        second.close()
        with pytest.raises(ServiceError, match="closed"):
            second.ensure()
        first.ensure()
        assert len(living_owners(home / "temporal" / "owners")) == 1
    assert not processes(home)
    [(_, words, environment)] = fake.starts()
    assert words[words.index("--ip") + 1] == "127.0.0.1"
    assert "TEMPORAL_ADDRESS" not in environment
    with server.start(home) as again:
        assert again.address == first.address
    assert (home / "temporal" / watch.DATABASE).read_text() == "xx"


def test_a_killed_program_comes_back_by_itself_at_its_address(home: Path, fake: Fake) -> None:
    with server.start(home) as mine:
        address, before = mine.address, watcher(home)
        kill(program(home))
        until(lambda: len(fake.starts()) == 2)
        mine.ensure()
        assert (mine.address, watcher(home)) == (address, before)
        assert (home / "temporal" / watch.DATABASE).read_text() == "xx"


def test_a_killed_watcher_takes_the_program_along_and_ensure_brings_both_back(home: Path, fake: Fake) -> None:
    with server.start(home) as mine:
        address, watched, ran = mine.address, watcher(home), program(home)
        os.kill(watched, signal.SIGKILL)  # and at once, while the kernel still clears up:
        mine.ensure()
        assert mine.address == address
        assert {watcher(home), program(home)}.isdisjoint({watched, ran})
        assert {process.pid for process in processes(home)} == {watcher(home), program(home)}


def test_a_watcher_that_dies_while_it_is_waited_for_is_replaced(
    home: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = server._answers

    def kill_first(state: watch.State, program: str) -> bool:
        monkeypatch.setattr(server, "_answers", answers)
        kill(pid_of(state.watcher))
        until(lambda: not processes(home))
        return answers(state, program)

    with server.start(home) as mine:
        monkeypatch.setattr(server, "_answers", kill_first)
        mine.ensure()
        assert psutil.pid_exists(watcher(home))
        assert len(fake.starts()) == 2


def test_a_port_that_was_taken_meanwhile_is_given_up(home: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PORT_PATIENCE", 0.0)
    with server.start(home) as mine:
        address = mine.address
    with socket.create_server(("127.0.0.1", int(address.partition(":")[2]))), server.start(home) as mine:
        assert mine.address != address
        assert server.address_of(home) == mine.address


def test_while_the_program_is_down_nobody_is_given_its_port(home: Path, fake: Fake) -> None:
    with server.start(home) as mine:
        os.kill(watcher(home), signal.SIGSTOP)
        kill(program(home))
        port = int(mine.address.partition(":")[2])
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        os.kill(watcher(home), signal.SIGCONT)
        mine.ensure()


def test_a_program_that_fails_is_given_up_with_its_words(home: Path, fake: Fake) -> None:
    fake.tell("fail Error: database or disk is full")
    with pytest.raises(ServiceError, match="disk is full") as failed:
        server.start(home)
    assert "free some space" in str(failed.value)
    assert "TEMPORAL_ADDRESS" in str(failed.value)
    assert len(fake.starts()) == watch.ATTEMPTS
    assert not living_owners(home / "temporal" / "owners")


def test_a_program_that_never_serves_is_ended(home: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "START_PATIENCE", 0.3)
    fake.tell("unwell")
    with pytest.raises(ServiceError, match="did not answer"):
        server.start(home)
    assert not processes(home)


def test_a_database_that_a_killed_program_left_half_made_is_made_anew(home: Path, fake: Fake) -> None:
    fake.tell("half-made")
    (home / "temporal").mkdir(parents=True)
    (home / "temporal" / f"{watch.DATABASE}-journal").touch()
    with server.start(home):
        assert len(fake.starts()) == 2
        assert not (home / "temporal" / f"{watch.DATABASE}-journal").exists()
        assert (home / "temporal" / "made").exists()


def test_a_home_that_is_deleted_and_made_anew_has_one_server(home: Path, fake: Fake) -> None:
    with server.start(home):
        old = {watcher(home), program(home)}
        shutil.rmtree(home)
        with server.start(home):
            found = {process.pid for process in processes(home)}
            assert found == {watcher(home), program(home)}
            assert found.isdisjoint(old)


def test_a_forked_child_gives_up_nothing(home: Path, fake: Fake) -> None:
    with server.start(home) as mine:
        if (child := os.fork()) == 0:
            mine.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert psutil.pid_exists(program(home))
        assert len(living_owners(home / "temporal" / "owners")) == 1


def test_a_missing_program_and_a_folder_of_no_use_are_named(
    home: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("no folder")
    with pytest.raises(ServiceError, match="WORKBENCH_HOME") as failed:
        server.start(home)
    assert str(home) in str(failed.value)
    monkeypatch.setenv("PATH", str(home.parent))
    monkeypatch.setattr(sys, "executable", str(home.parent / "python"))
    with pytest.raises(ServiceError, match=r"rag-workbench\[temporal\].*TEMPORAL_ADDRESS"):
        server.start(home)


@settings(max_examples=40)
@given(st.binary() | st.recursive(st.integers() | st.text() | st.none(), st.lists).map(repr).map(str.encode))
def test_a_state_file_of_any_content_is_read_or_ignored(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state.json").write_bytes(content)
        assert watch.read_state(Path(folder)) is None
        assert watch.running(Path(folder)) is None


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers())
def test_a_state_comes_back_as_it_was_written(name: str, port: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        watch.write_state(Path(folder), watch.State(name, port))
        assert watch.read_state(Path(folder)) == (watch.State(name, port) if 0 < port < 65536 else None)


# --- the way to any server ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "variables", "named"),
    [
        ("", {}, False),
        ("", {"TEMPORAL_ADDRESS": "there:7233"}, True),
        ("[profile.default]\naddress = 'there:7233'\n", {}, True),
        ("[profile.default]\nnamespace = 'mine'\n", {"TEMPORAL_API_KEY": "k"}, False),
        ("[profile.cloud]\naddress = 'there:7233'\n", {}, False),
        ("[profile.cloud]\naddress = 'there:7233'\n", {"TEMPORAL_PROFILE": "cloud"}, True),
    ],
)
def test_only_a_configuration_with_an_address_names_a_server(
    plain: pytest.MonkeyPatch, tmp_path: Path, file: str, variables: dict[str, str], named: bool
) -> None:
    (tmp_path / "temporal.toml").write_text(file)
    for name, value in variables.items():
        plain.setenv(name, value)
    assert connection.configured() is named


@settings(max_examples=40)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_key_in_a_file_that_cannot_be_read_is_not_shown(before: str, after: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as context:
        file = Path(folder) / "temporal.toml"
        file.write_text(f"{before}\n[profile.default]\napi_key = {after} 'sekret-3f9'\n", errors="ignore")
        context.setenv("TEMPORAL_CONFIG_FILE", str(file))
        with suppress(ServiceError):
            try:
                connection.configured()
            except ServiceError as error:
                assert "sekret-3f9" not in str(error)
                assert error.__cause__ is None
                assert error.__suppress_context__
                raise


def test_a_profile_that_is_not_there_is_named(plain: pytest.MonkeyPatch) -> None:
    plain.setenv("TEMPORAL_PROFILE", "nowhere")
    with pytest.raises(ServiceError, match="'nowhere' not found"):
        connection.configured()


def test_what_does_not_answer_is_named_without_secrets(plain: pytest.MonkeyPatch, home: Path) -> None:
    plain.setattr(connection, "PATIENCE", 0.5)
    with pytest.raises(ServiceError, match=r"no Temporal server is known.*TEMPORAL_ADDRESS"):
        asyncio.run(connection.connect(home))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match=f"{address}: .*did not answer within"):
            asyncio.run(connection.connect(home, address))
    with pytest.raises(ServiceError, match=f"{address}: .*nothing listens there.*--engine temporal"):
        asyncio.run(connection.connect(home, address))
    plain.setenv("TEMPORAL_ADDRESS", address)
    plain.setenv("TEMPORAL_API_KEY", "sekret-3f9")
    with pytest.raises(ServiceError, match=f"{address}: .*nothing listens there.*TEMPORAL_PROFILE") as failed:
        asyncio.run(connection.connect(home, "127.0.0.1:1"))
    assert "sekret" not in str(failed.value)


# --- with the real program ------------------------------------------------------------------------

real = pytest.mark.slow


def ask(home: Path, question: Callable[[Client], Awaitable[Any]]) -> Any:
    async def answer() -> Any:
        return await question(await connection.connect(home))

    return asyncio.run(answer())


def begin(home: Path, name: str) -> None:
    """Start a workflow that nobody will ever run: something to find again."""
    ask(home, lambda client: client.start_workflow("nothing", id=name, task_queue="nobody"))


def exists(home: Path, name: str) -> bool:
    from temporalio.client import WorkflowExecutionStatus

    async def status(client: Client) -> bool:
        described = await client.get_workflow_handle(name).describe()
        return described.status == WorkflowExecutionStatus.RUNNING

    return bool(ask(home, status))


@real
@pytest.mark.usefixtures("plain")
def test_what_was_begun_survives_every_kill(home: Path) -> None:
    with server.start(home) as mine:
        address = mine.address
        begin(home, "kept")
        for process in processes(home):
            assert {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN} <= {"127.0.0.1"}
        os.kill(program(home), signal.SIGKILL)
        assert exists(home, "kept")  # without ensure: the watcher heals, and connect waits
        os.kill(watcher(home), signal.SIGKILL)
        mine.ensure()
        assert exists(home, "kept")
        os.kill(watcher(home), signal.SIGKILL)
        os.kill(program(home), signal.SIGKILL)
        mine.ensure()
        assert exists(home, "kept")
        assert mine.address == address
    assert not processes(home)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(address.partition(":")[2])), 1)
    with server.start(home) as mine:
        assert mine.address == address
        assert exists(home, "kept")


@real
@pytest.mark.usefixtures("plain")
def test_a_client_lives_through_a_restart_and_the_core_says_nothing(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def through(client: Client) -> None:
        os.kill(program(home), signal.SIGKILL)
        await client.count_workflows()

    with server.start(home):
        ask(home, through)
    assert capfd.readouterr() == ("", "")


@real
@pytest.mark.usefixtures("plain")
def test_killed_owners_leave_the_server_to_others_and_the_last_one_nothing(home: Path) -> None:
    killed, stays = Owner(home), Owner(home)
    begin(home, "kept")
    before = program(home)
    killed.kill()
    until(lambda: len(living_owners(home / "temporal" / "owners")) == 1)
    time.sleep(watch.GRACE + 1)
    assert exists(home, "kept")
    assert program(home) == before
    stays.kill()
    until(lambda: not processes(home))
    with server.start(home):
        assert exists(home, "kept")


@real
@pytest.mark.usefixtures("plain")
def test_four_racing_on_a_fresh_home_get_one_server(home: Path) -> None:
    owners = [Owner(home, wait=False) for _ in range(4)]
    assert len({owner.read() for owner in owners}) == 1
    assert {process.pid for process in processes(home)} == {watcher(home), program(home)}
    for owner in owners:
        owner.leave()
    assert not processes(home)


@real
@pytest.mark.usefixtures("plain")
def test_an_owner_killed_at_any_moment_of_the_first_start_spoils_nothing(tmp_path: Path) -> None:
    """Temporal never finishes a database whose making was cut short."""
    for moment in range(5):
        home = tmp_path / str(moment)
        owner = Owner(home, wait=False)
        until(lambda home=home: processes(home))
        time.sleep(0.04 * moment)
        owner.kill()
        for process in processes(home):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with server.start(home):
            begin(home, "kept")
            assert exists(home, "kept")
        assert not processes(home)


@real
@pytest.mark.usefixtures("plain")
def test_homes_are_apart_whatever_their_names(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("one", "q?x=1", "100%41 'of\" $HOME", "ümläut#")]
    with ExitStack() as stack:
        addresses = {stack.enter_context(server.start(home)).address for home in homes}
        assert len(addresses) == len(homes)
        begin(homes[0], "kept")
        for home in homes:
            assert ask(home, lambda client: client.count_workflows()).count in (0, 1)
            assert (home / "temporal" / watch.DATABASE).stat().st_size
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(home.name for home in homes)
    assert not any(processes(home) for home in homes)


@real
@pytest.mark.usefixtures("plain")
def test_a_process_that_has_asked_ends_well(home: Path) -> None:
    """The SDK alone aborts about every second time."""
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom workbench.sweeps.temporal.connection import connect\n"
        "async def ask():\n    client = await connect(Path(sys.argv[1]))\n    await client.count_workflows()\n"
        "asyncio.run(ask())\n"
    )
    with server.start(home):
        for _ in range(8):
            done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
