"""What the service's sandbox must allow: everything that the daemon reads, and every channel."""

import json
from datetime import UTC, datetime
from pathlib import Path

from harness.bus import NotificationServer
from harness.daemon import started, wait_for
from harness.events import CommandProgram, Passed, Subscriber, interband_files, read_state_file, wait_until_delivered
from harness.interstat import Interstat
from harness.jail_service import PATIENT, SERVICE, Account, systemctl
from harness.transcripts import Transcript

BUDGET = "budgets:\n  plan: 77000\n"


def no_desktop(*argv: str) -> str:
    return f"[channels.desktop]\nenabled = false\n[channels.command]\nargv = {json.dumps(argv)}\n"


def test_every_channel_delivers(home: Account, tmp_path: Path) -> None:
    """A warning reaches the desktop, interband's file, the command, the journal and a subscriber."""
    server = NotificationServer(f"unix:path={home.runtime}/bus", tmp_path / "shown", ())
    program = CommandProgram(home)
    program.path = home.root / ".interband" / "events.jsonl"
    home.configure(f"[channels.command]\nargv = {json.dumps([program.argv[0], str(program.path)])}\n")
    home.install()
    interstat = Interstat(home.interstat)
    try:
        with Subscriber(home) as stream:
            started(home, id="r1", session="s1", token_budget=1000)
            interstat.insert("s1", input_tokens=850, output_tokens=0)
            stream.until("budget.warning")
        wait_until_delivered(home)
        (bubble,) = server.shown
        assert bubble["summary"] == "fluxbudget: 80 % of the budget spent"
        assert interband_files(home) == {"s1": (85.0, 850)}
        assert program.thresholds == [Passed("budget.warning", 80)]
        wait_for(lambda: (read_state_file(home, "sessions", "s1") or {}).get("spent") == "850", "the state file")
        (entry,) = home.journal(FLUXBUDGET_RUN="r1", FLUXBUDGET_KIND="budget.warning")
        assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("4", "fluxbudgetd")
        assert entry["MESSAGE"].startswith("budget ")
        assert str(datetime.now(UTC).year) not in entry["MESSAGE"]
    finally:
        server.stop()
        interstat.close()


def test_command_may_be_run_outside_the_sandbox(home: Account) -> None:
    """The documented `systemd-run --user` does it, and passes the event on stdin."""
    place = home.root / "outside.json"
    argv = ["systemd-run", "--user", "--quiet", "--collect", "--wait", "--pipe", "sh", "-c", 'cat >"$0"', str(place)]
    home.configure(no_desktop(*argv))
    home.install()
    interstat = Interstat(home.interstat)
    started(home, id="r1", session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=850, output_tokens=0)
    home.spend("r1")
    wait_until_delivered(home)
    assert json.loads(place.read_text())["kind"] == "budget.warning"
    interstat.close()


def test_transcript_counts_while_it_grows(service: Account) -> None:
    """It counts without an interstat database."""
    transcript = Transcript(service.claude, "s1")
    transcript.response("m1", tokens=(100, 20, 0, 0))
    service.ok("run", "start", "--id", "r1", "--budget", "1000", "--session", "s1", "--whole", *PATIENT)
    with Subscriber(service, since=0) as stream:
        assert service.ok("remaining", "--run", "r1", *PATIENT) == "880"
        transcript.response("m2", request="req_2", tokens=(700, 50, 0, 0))
        stream.until("budget.warning")  # without a request: the watcher works, too
    assert service.ok("remaining", "--run", "r1", *PATIENT) == "130"


def test_database_that_no_process_has_open(service: Account) -> None:
    """It is in WAL mode, first without the -shm and -wal files, then with a writer again."""
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=100, output_tokens=0)
    interstat.close()
    assert [path.name for path in service.interstat.parent.iterdir()] == ["metrics.db"]
    started(service, id="r1", session="s1", whole=True, token_budget=1000)
    assert service.spend("r1").spent == 100
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=200, output_tokens=0)
    assert service.spend("r1").spent == 300
    interstat.close()
    assert service.spend("r1").spent == 300
    assert not service.spend("r1").stale


def test_database_that_a_killed_writer_has_left(service: Account) -> None:
    """It has left a -wal without a -shm, which SQLite must create again. In a read-only directory it could not."""
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=100, output_tokens=0)
    files = {path: path.read_bytes() for path in service.interstat.parent.iterdir() if not path.name.endswith("-shm")}
    interstat.close()
    assert len(files) == 2
    for path, content in files.items():
        path.write_bytes(content)
    started(service, id="r1", session="s1", whole=True, token_budget=1000)
    spend = service.spend("r1")
    assert (spend.spent, spend.stale_why) == (100, None)


def test_database_created_later(service: Account) -> None:
    """Interstat is installed while the daemon is running."""
    started(service, id="r1", session="s1", token_budget=1000)
    assert service.spend("r1").spent == 0
    interstat = Interstat(service.interstat)
    interstat.insert("s1", input_tokens=100, output_tokens=0)

    def has_spent() -> bool:
        spend = service.spend("r1")
        assert spend.spent == 100 or spend.stale
        return not spend.stale

    wait_for(has_spent, "the row to count")
    interstat.close()


def budget_in(service: Account, project: Path) -> int:
    """Return a project's budget for the review of a plan."""
    agents = json.dumps({"agents": [{"name": "fd-quality", "score": 3, "stage": 1}]})
    run = service.ok("run", "start", "--budget", "1000000", "--project", str(project), *PATIENT)
    result = service.ctl("triage", "--run", run, "--input-type", "plan", "--json", *PATIENT, cwd=project, stdin=agents)
    assert result.returncode == 0, result
    return int(json.loads(result.stdout)["budget"])


def write_budget(project: Path) -> None:
    (project / ".claude").mkdir(parents=True)
    (project / ".claude" / "flux-drive-budget.yaml").write_text(BUDGET)


def test_projects_may_be_anywhere(service: Account) -> None:
    """They work in the home directory or elsewhere, but below /tmp only if a drop-in names them."""
    for number, place in enumerate((service.root / "work", Path("/srv/work"), Path("/tmp/work"))):  # noqa: S108
        write_budget(place)
        assert budget_in(service, place) == (77_000 if number < 2 else 150_000)
    service.drop_in("project", "BindReadOnlyPaths=/tmp/work")
    systemctl("restart", SERVICE)
    assert budget_in(service, Path("/tmp/work")) == 77_000  # noqa: S108
