"""The life of servers, with a fake program in vLLM's place: real processes, real locks, real signals."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from fake_server import Fake
from serving_tools import alive, get, is_clean, processes_of, until

from workbench.errors import ModelError
from workbench.processes import send
from workbench.serving import launching, supervisor
from workbench.serving.servers import Servers
from workbench.serving.spec import GIB, ServerSpec

Make = Callable[..., Servers]

OTHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_server import Fake
from workbench.serving.servers import Servers
from workbench.serving.spec import ServerSpec
servers = Servers(Path(sys.argv[2]), program=Fake(Path(sys.argv[3])), grace_seconds=0.3)
sys.stdin.readline()
with servers.hold(ServerSpec("/m", sys.argv[4])) as lease:
    print(lease.endpoint().url, flush=True)
    sys.stdin.readline()
"""


def spec(name: str = "m", **arguments: bool | int | float | str) -> ServerSpec:
    return ServerSpec("/m", name, arguments=arguments)


class Other:
    """Another process that holds a lease from `go` on, until it is let go or killed."""

    def __init__(self, home: Path, fake: Fake, name: str = "m") -> None:
        words = [sys.executable, "-c", OTHER, str(Path(__file__).parent), str(home), str(fake.starts), name]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go(self) -> Other:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def url(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=20)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_server_is_started_once_shared_and_gone_with_its_last_owner(servers: Servers, fake: Fake, home: Path) -> None:
    with servers.hold(spec()) as first, servers.hold(spec()) as second:
        assert not fake.pids()  # only when it is needed
        endpoint = first.endpoint()
        assert second.endpoint() == first.endpoint() == endpoint
        assert get(endpoint)[1]["pid"] in fake.pids()
        with servers.hold(spec("other")) as third:
            assert third.endpoint() != endpoint
            assert len(servers.status()) == 2
        first.close()
        first.close()
        assert second.endpoint() == endpoint
        with pytest.raises(ModelError, match="closed"):
            first.endpoint()
    until(lambda: is_clean(home))
    assert len(fake.pids()) == 2
    assert not any(map(alive, fake.pids()))


def test_the_key_is_seen_by_nobody_else(servers: Servers, home: Path) -> None:
    with servers.hold(spec()) as lease:
        endpoint = lease.endpoint()
        assert get(endpoint)[0] == 200
        assert get(endpoint, key="wrong")[0] == 401
        commands = [" ".join(process.cmdline()) for process in processes_of(home)]
        assert len(commands) == 2
        assert not any(endpoint.key in text for text in [*commands, repr(endpoint), repr(lease)])
        assert repr(supervisor.running(lease.folder)).find(endpoint.key) < 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (home, home / lease.key, lease.folder / "state.json"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a bound port cannot be shared so")
def test_a_reserved_port_is_for_one_program() -> None:
    with supervisor.reserve_port() as held, socket.socket() as stranger, socket.socket() as server:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(held.getsockname())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(held.getsockname())
        server.listen()
        with socket.create_connection(held.getsockname()) as client:
            assert client.getpeername() == server.getsockname()


def test_threads_that_race_start_one_server(servers: Servers, fake: Fake) -> None:
    with servers.hold(spec()) as lease, ThreadPoolExecutor(6) as threads:
        first = set(threads.map(lambda _: lease.endpoint().url, range(6)))
        assert len(first) == len(fake.pids()) == 1
        old = lease.endpoint()
        os.kill(fake.pids()[0], signal.SIGKILL)
        again = set(threads.map(lambda _: lease.endpoint(failed=old).key, range(6)))
        assert len(again) == 1
        assert len(fake.pids()) == 2
        assert {old.key}.isdisjoint(again)


@pytest.mark.slow
def test_processes_that_race_start_one_server(home: Path, fake: Fake, servers: Servers) -> None:
    others = [Other(home, fake) for _ in range(5)]
    for other in others:
        other.go()
    assert len({other.url() for other in others}) == 1
    assert len(fake.pids()) == 1
    assert servers.status()[0].owners == 5
    for other in others[:4]:
        other.leave()
    assert alive(fake.pids()[0])
    others[4].kill()  # runs no exit handler
    until(lambda: is_clean(home))


@pytest.mark.parametrize("which", ["program", "supervisor"])
def test_whatever_is_killed_leaves_no_process_and_the_next_call_starts_afresh(
    servers: Servers, fake: Fake, home: Path, which: str
) -> None:
    with servers.hold(spec(**({"engine": True} if which == "program" else {}))) as lease:
        old = lease.endpoint()
        before = [process.pid for process in processes_of(home)]
        assert len(before) == (3 if which == "program" else 2)
        os.kill(fake.pids()[0] if which == "program" else servers.status()[0].pid, signal.SIGKILL)
        until(lambda: not any(map(alive, before)))
        assert not servers.status()
        new = lease.endpoint(failed=old)
        assert new != old
        assert get(new)[0] == 200
        assert lease.endpoint(failed=old) == lease.endpoint(failed=new) == new  # it is well
    assert len(fake.pids()) == 2


def test_a_dead_server_is_replaced_for_who_does_not_know_that_it_failed(
    servers: Servers, fake: Fake, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.hold(spec()) as lease:
        old = lease.endpoint()
        os.kill(fake.pids()[0], signal.SIGKILL)
        assert lease.endpoint() != old
        log = home / "logs" / f"{lease.key}.log"
        assert log.read_text().startswith("Starting to load")  # what it said before it died
        assert caplog.messages == [f"the server of 'm' died and is started again; its log: {log}"]


@pytest.mark.slow
def test_an_idle_server_stops_although_it_is_owned(make: Make, fake: Fake, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    with make(idle_seconds=0.3).hold(spec(busy=str(busy))) as lease:
        endpoint = lease.endpoint()
        until(lambda: get(endpoint)[1]["looks"] >= 4)  # longer than it may idle, but a request runs
        assert alive(fake.pids()[0])
        busy.unlink()
        until(lambda: not alive(fake.pids()[0]))
        assert lease.endpoint() != endpoint
        assert len(fake.pids()) == 2


def test_what_counts_as_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [(False, "a 1")]
    monkeypatch.setattr(supervisor, "activity", lambda port: now[0])
    state = supervisor.State("1-1", 1, "k", 0.0, idle_seconds=100, grace_seconds=5, need={}, spec={})
    watch, used = supervisor.Supervisor(tmp_path, []), tmp_path / "used"
    used.touch()
    assert not watch._is_idle(state, 1e9)  # it is still starting
    (tmp_path / "ready").touch()
    assert not watch._is_idle(state, 1e9 + 99)
    assert watch._is_idle(state, 1e9 + 100)
    os.utime(used, ns=(1, 1))  # a lease was touched
    assert not watch._is_idle(state, 1e9 + 100)
    assert not watch._is_idle(state, 1e9 + 199)
    now[0] = (False, "a 2")  # somebody asked between two looks
    assert not watch._is_idle(state, 1e9 + 200)
    assert used.stat().st_mtime_ns > 1
    assert not watch._is_idle(state, 1e9 + 201)
    now[0] = (True, "a 2")  # a request runs
    assert not watch._is_idle(state, 1e9 + 400)
    assert not watch._is_idle(state, 1e9 + 401)
    now[0] = (False, "a 2")
    assert not watch._is_idle(state, 1e9 + 500)
    assert watch._is_idle(state, 1e9 + 501)


@pytest.mark.slow
def test_a_kept_server_outlives_its_owner_until_it_is_idle(make: Make, fake: Fake, home: Path) -> None:
    servers = make(idle_seconds=2)
    status = servers.start(spec())
    assert (status.served_name, status.model, status.ready, status.kept) == ("m", "/m", True, True)
    assert status.rss_bytes > 10 * 2**20
    assert status.pid in [process.pid for process in processes_of(home)]
    assert not until(lambda: servers.status()[0].owners == 0) > 2
    with servers.hold(spec()) as lease:
        endpoint = lease.endpoint()
        assert endpoint.url == status.url
        os.kill(fake.pids()[0], signal.SIGKILL)
        lease.endpoint(failed=endpoint)
    assert [(status.kept, status.owners) for status in servers.status()] == [(True, 0)]  # a crash does not change that
    until(lambda: is_clean(home))
    assert len(fake.pids()) == 2


@pytest.mark.slow
def test_stop_by_key_whoever_owns_it(servers: Servers, fake: Fake, home: Path) -> None:
    assert servers.stop() == []
    with servers.hold(spec("a")) as a, servers.hold(spec("b")) as b:
        gone, stays = a.endpoint(), b.endpoint()
        assert servers.stop(a.key[:8]) == [a.key]
        assert [status.key for status in servers.status()] == [b.key]
        assert b.endpoint() == stays
        with pytest.raises(ModelError, match=f"no server 'zzz' runs.*{b.key}"):
            servers.stop("zzz")
        assert a.endpoint(failed=gone) != gone
        assert sorted(servers.stop()) == sorted([a.key, b.key])
        assert not any(map(alive, fake.pids()))


def test_a_failed_start_says_why_and_keeps_the_log(servers: Servers, fake: Fake, home: Path) -> None:
    said = "the tokenizer is missing"
    with servers.hold(spec(fail=f"ValueError: {said}")) as lease:
        for _ in range(2):  # the next call tries again
            with pytest.raises(ModelError, match=f"no server of 'm': vLLM ended with code 3 .*{said}") as caught:
                lease.endpoint()
        log = Path(str(caught.value.where))
    until(lambda: is_clean(home))
    assert said in log.read_text()
    assert "***" in log.read_text()  # the fake says its key
    assert "***" in str(caught.value)
    assert len(fake.pids()) == 2


def test_a_taken_port_is_no_failure(servers: Servers, fake: Fake, tmp_path: Path) -> None:
    with servers.hold(spec(**{"fail-once": str(tmp_path / "once")})) as lease:
        assert get(lease.endpoint())[0] == 200
        assert len(fake.pids()) == 2


@pytest.mark.slow
def test_ports_that_are_always_taken_are(servers: Servers, fake: Fake) -> None:
    with servers.hold(spec(fail="address already in use")) as lease, pytest.raises(ModelError, match="already in use"):
        lease.endpoint()
    assert len(fake.pids()) == 3


def test_a_start_that_takes_too_long(make: Make, fake: Fake, home: Path) -> None:
    phases = []
    with make(start_seconds=0.5).hold(spec(silent=True), lambda phase, seconds: phases.append(phase)) as lease:
        with pytest.raises(ModelError, match=r"not ready after \d+ seconds \(loading weights\)") as caught:
            lease.endpoint()
        assert not any(map(alive, fake.pids()))
    assert "loading weights" in phases
    assert Path(str(caught.value.where)).read_text().startswith("Starting to load")


def test_a_killed_start_says_so(servers: Servers, fake: Fake) -> None:
    def kill(phase: str, seconds: float) -> None:
        for pid in fake.pids():
            send(pid, signal.SIGKILL)

    with servers.hold(spec(silent=True), kill) as lease, pytest.raises(ModelError, match=r"killed.*memory"):
        lease.endpoint()


def test_a_supervisor_killed_at_each_start_is_started_three_times(servers: Servers, fake: Fake) -> None:
    killed = set()

    def kill(phase: str, seconds: float) -> None:
        for status in servers.status():
            killed.add(status.pid)
            send(status.pid, signal.SIGKILL)

    with servers.hold(spec(silent=True), kill) as lease, pytest.raises(ModelError, match="was killed while it started"):
        lease.endpoint()
    assert len(killed) == 3


def test_stopped_while_it_starts(servers: Servers, fake: Fake) -> None:
    def stop(phase: str, seconds: float) -> None:
        servers.stop()

    with servers.hold(spec(silent=True), stop) as lease, pytest.raises(ModelError, match="was stopped"):
        lease.endpoint()


@pytest.mark.slow
def test_making_room_stops_what_nobody_else_uses(make: Make, fake: Fake, tmp_path: Path) -> None:
    """Memory for one of two: a busy server stays, ours at rest goes, and comes back when it is asked for."""
    servers = make(available=lambda: GIB, room_seconds=0.3, grace_seconds=60)
    (tmp_path / "busy").touch()
    large = spec("large", need=2)
    with servers.hold(spec("a", busy=str(tmp_path / "busy"))) as a, servers.hold(large) as b:
        a.endpoint()
        with pytest.raises(ModelError, match=f"no room for a server of 'large'.*a .{a.key}"):
            b.endpoint()
        (tmp_path / "busy").unlink()
        b.endpoint()
        assert [status.key for status in servers.status()] == [b.key]
        a.endpoint()  # small enough to stand beside it
        assert len(servers.status()) == 2
    with servers.hold(spec("third", need=2)) as third:  # nobody owns the others any more, grace or not
        third.endpoint()
        assert [status.key for status in servers.status()] == [third.key]


@pytest.mark.slow
def test_servers_of_other_processes_are_not_stopped_for_ours(make: Make, fake: Fake, home: Path) -> None:
    servers = make(available=lambda: GIB)
    other = Other(home, fake, "theirs").go()
    other.url()
    phases = []
    with servers.hold(spec("large", need=2), lambda phase, seconds: phases.append(phase)) as lease:
        with pytest.raises(ModelError, match="theirs"):
            lease.endpoint()
        assert phases == ["waiting for memory"] * len(phases) != []
        other.leave()
        lease.endpoint()
        assert len(servers.status()) == 1


def test_a_starting_server_is_promised_its_memory(make: Make, fake: Fake) -> None:
    servers = make(available=lambda: 3 * GIB)
    with servers.hold(spec("slow", silent=True, need=2)) as slow, servers.hold(spec("second", need=2)) as second:
        slow._start(None)
        with pytest.raises(ModelError, match="slow"):
            second.endpoint()


def test_a_forked_child_lets_go_of_nothing(servers: Servers) -> None:
    with servers.hold(spec()) as lease:
        endpoint = lease.endpoint()
        child = multiprocessing.get_context("fork").Process(target=lease.close)
        child.start()
        child.join()
        assert servers.status()[0].owners == 1
        assert lease.endpoint() == endpoint


def test_a_deleted_home_ends_its_servers(servers: Servers, fake: Fake, home: Path) -> None:
    with servers.hold(spec()) as lease:
        old = lease.endpoint()
        shutil.rmtree(home)
        until(lambda: not alive(fake.pids()[0]))
        assert lease.endpoint(failed=old) != old


def test_recycled_pids_own_and_run_nothing(servers: Servers, home: Path) -> None:
    with servers.hold(spec()) as lease:
        lease.endpoint()
        (lease.folder / "owners" / f"{os.getpid()}-1-0").touch()
        assert servers.status()[0].owners == 1
        text = (lease.folder / "state.json").read_text()
        servers.stop()
        (lease.folder / "state.json").write_text(text.replace('"supervisor": "', f'"supervisor": "{os.getpid()}-'))
        assert servers.status() == []
        assert servers.stop() == []


def test_homes_that_others_can_look_into_are_refused(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ModelError, match=r"others can look into it.*chmod 700"):
        Servers(tmp_path / "open", program=fake).hold(spec())
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot use this folder.*WORKBENCH_SERVING_HOME"):
        Servers(tmp_path / "file" / "home", program=fake).hold(spec())
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="someone else"):
        Servers(tmp_path / "link", program=fake).hold(spec())
    monkeypatch.setenv("WORKBENCH_SERVING_HOME", str(tmp_path / "given"))
    assert Servers().home == tmp_path / "given"
    monkeypatch.delenv("WORKBENCH_SERVING_HOME")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert launching.default_home() == Path(f"/tmp/rag-workbench-{os.getuid()}/serving")
    assert Servers(tmp_path / "nothing", program=fake).status() == []
    assert not (tmp_path / "nothing").exists()


def test_the_supervisor_is_small(servers: Servers) -> None:
    with servers.hold(spec()) as lease:
        lease.endpoint()
        assert psutil.Process(servers.status()[0].pid).memory_info().rss < 30 * 2**20
