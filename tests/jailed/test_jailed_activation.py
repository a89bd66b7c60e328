"""Socket activation, reloading and stopping: every client gets an answer."""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluxbudgetctl.calls import call
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame
from harness.daemon import CTL, Wire, started, wait_for
from harness.events import Subscriber
from harness.interstat import Interstat
from harness.jail_service import PATIENT, SERVICE, SOCKET, Account, systemctl


def ping_processes(service: Account, count: int) -> list[subprocess.Popen[bytes]]:
    command = [*CTL, "ping", *PATIENT]
    return [subprocess.Popen(command, env=service.environ, stdout=subprocess.DEVNULL) for _ in range(count)]


def test_first_request_starts_the_daemon_and_is_answered(service: Account) -> None:
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=1000, output_tokens=234)
    interstat.close()
    assert service.pid == 0
    service.ok("run", "start", "--id", "r1", "--budget", "10000", *PATIENT)
    service.ok("run", "attach", "--run", "r1", "--session", "s1", "--whole", *PATIENT)
    systemctl("stop", SERVICE)
    assert service.ok("remaining", "--run", "r1", *PATIENT) == "8766"
    assert service.pid
    wait_for(lambda: service.show("StatusText") == "1 active run; interstat ok, transcripts ok", "these words")


def test_many_clients_at_activation(service: Account) -> None:
    """One daemon answers 200 concurrent clients, some of them real processes."""
    processes = ping_processes(service, 6)
    wires = [Wire(service.socket) for _ in range(194)]
    for wire in wires:
        wire.socket.sendall(encode_frame(messages.encode(messages.Ping())))
    answers = [messages.decode_answer(wire.receive()) for wire in wires]
    for wire in wires:
        wire.socket.close()
    pids = {answer.pid for answer in answers if isinstance(answer, messages.PingAnswer)}
    assert len(answers) == 194
    assert pids == {service.pid}
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    assert service.restarts == 0


def test_systemctl_reload_waits_until_the_reload_is_done(service: Account) -> None:
    pid = service.ping().pid
    service.configure("[runs]\nwarn_pct = 61\n")
    systemctl("reload", SERVICE)
    started(service, id="at-once")
    assert service.json("run", "show", "--run", "at-once")["run"]["warn_pct"] == 61
    service.wait_until_logged("configuration reloaded")
    assert service.show("ActiveState") == "active"
    assert started(service, id="r1", token_budget=1000) == "r1"
    assert service.json("run", "show", "--run", "r1")["run"]["warn_pct"] == 61
    assert service.pid == pid


def test_removed_socket_is_reported_and_comes_back_with_its_unit(service: Account) -> None:
    """The daemon does not bind the manager's socket itself."""
    service.ping()
    service.socket.unlink()
    service.wait_until_logged("clients cannot connect")
    command = f"systemctl --user restart {SOCKET}"
    assert command in service.ctl("doctor").stdout
    assert not service.socket.exists()
    systemctl(*command.split()[2:])
    assert service.ping().pid == service.pid


def test_restarts_lose_no_request(service: Account) -> None:
    """Clients that connect during repeated restarts are answered, by the old or the new daemon."""
    first = service.ping().pid
    answered: list[int] = []
    is_over = threading.Event()

    def keep_calling() -> None:
        while not is_over.is_set():
            answered.append(call(messages.Ping(), messages.PingAnswer, 30.0, str(service.socket)).pid)

    with ThreadPoolExecutor() as pool:
        callers = [pool.submit(keep_calling) for _ in range(6)]
        for _ in range(6):
            wait_for(lambda: answered and answered[-1] == service.pid, "answers of the current daemon")
            systemctl("restart", SERVICE)
        is_over.set()
        for caller in callers:
            caller.result()  # raises the thread's exception
    assert len(set(answered)) >= 6
    assert answered[0] == first


def test_stop_while_clients_are_connected(service: Account) -> None:
    """Existing connections are closed; clients that connect meanwhile are served by the next daemon."""
    first = service.ping().pid
    with Wire(service.socket) as idle, Subscriber(service) as stream:
        systemctl("stop", "--no-block", SERVICE)
        served = [first]
        while served[-1] == first:
            served.append(service.ping().pid)
        with pytest.raises(EOFError):
            idle.receive()
        stream.read_to_end()
    assert service.show("ActiveState", SOCKET) == "active"
    assert (service.pid, service.restarts) == (served[-1], 0)


def test_socket_that_is_stopped_is_gone(service: Account) -> None:
    service.ping()
    systemctl("stop", SOCKET, SERVICE)
    assert not service.socket.exists()
    assert service.ctl("ping", *PATIENT).returncode == 69
    systemctl("start", SOCKET)
    assert service.ctl("ping", *PATIENT).returncode == 0
