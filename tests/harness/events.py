"""What is told, seen from outside: subscribers, a program that notes its events, the ledger's own list."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple, Self

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, wait_for

#: A program that appends what it is told to the file that it is given.
APPENDING = '#!/bin/sh\nexec cat >> "$1"\n'


class Told(NamedTuple):
    """A threshold's event: its kind and percentage."""

    kind: str
    pct: int


HALF = Told("budget.threshold", 50)
EIGHTY = Told("budget.threshold", 80)
WARNING = Told("budget.warning", 80)
NEARLY = Told("budget.threshold", 95)
ALL = Told("budget.threshold", 100)
EXCEEDED = Told("budget.exceeded", 100)


class Stream:
    """A subscriber. `events` is what it has been told so far, `began` the stream's first answer."""

    def __init__(self, home: Home, since: int | None = None, run: str | None = None, heartbeat_ms: int = 0) -> None:
        self.wire = Wire(home.socket)
        request = messages.Subscribe(since=since, run=run, heartbeat_ms=heartbeat_ms)
        try:
            answer = self.wire.ask(request)
        except (OSError, EOFError):
            self.close()
            raise
        assert isinstance(answer, messages.SubscribedAnswer), answer
        self.began = answer
        self.events: list[messages.EventAnswer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.wire.socket.close()

    def next(self) -> messages.AnyAnswer:
        """Return what comes next; raises EOFError at the end of the stream."""
        answer = messages.decode_answer(self.wire.receive())
        assert not isinstance(answer, messages.ErrorAnswer), answer
        if isinstance(answer, messages.EventAnswer):
            self.events.append(answer)
        return answer

    def until(self, kind: str, pct: int | None = None) -> messages.EventAnswer:
        """Return the next event of this kind."""
        while True:
            answer = self.next()
            is_it = isinstance(answer, messages.EventAnswer) and answer.kind == kind
            if is_it and pct in (None, self.events[-1].data.get("threshold")):
                return self.events[-1]

    def up_to(self, seq: int) -> list[int]:
        """Read until an event's number is reached; return the numbers of all that have come."""
        while not self.events or self.events[-1].seq < seq:
            self.next()
        return self.seqs

    def rest(self) -> list[messages.AnyAnswer]:
        """Read to the end of the stream, and return what has come until then."""
        found = []
        with contextlib.suppress(EOFError):
            while True:
                found.append(self.next())
        return found

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.events]

    @property
    def thresholds(self) -> list[Told]:
        return [
            Told(event.kind, int(event.data["threshold"] or 0)) for event in self.events if is_threshold(event.kind)
        ]


def is_threshold(kind: str) -> bool:
    return kind in ("budget.threshold", "budget.warning", "budget.exceeded")


def configure(home: Home, text: str = "", *, argv: list[str] | None = None, command: str = "") -> None:
    """Write a configuration; `argv` is the command channel's, `command` the other lines of its table.

    Bubbles are off: whoever runs the tests may have a desktop.
    """
    file = home.root / ".config" / "fluxbudget" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = "" if argv is None else f"[channels.command]\nargv = {json.dumps(argv)}\n{command}\n"
    new = file.with_suffix(".new")
    new.write_text(f"{text}\n[channels.desktop]\nenabled = false\n{table}")
    new.replace(file)


class Program:
    """The command channel's program, which appends each event to a file."""

    def __init__(self, home: Home) -> None:
        self.path = home.root / "told.jsonl"
        script = home.root / "tell-me"
        script.write_text(APPENDING)
        script.chmod(0o700)
        self.argv = [str(script), str(self.path)]
        self._mark = os.fsencode(f"HOME={home.root}")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return what it was told, in that order; half a line is none yet."""
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    @property
    def told(self) -> list[Told]:
        return [Told(event["kind"], event["data"]["threshold"]) for event in self.events]

    def wait_until_ended(self) -> None:
        """Wait until nothing of it runs any more: it outlives a daemon that is killed, and may be appending just then.

        It is known by the environment that it has from the daemon: before the program is there, a new process is still
        called like the daemon, and behind the script's `exec` like `cat`.
        """
        wait_for(lambda: not any(map(self._is_of_it, Path("/proc").glob("[0-9]*"))), "the program to end")

    def _is_of_it(self, process: Path) -> bool:
        try:
            return self._mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or is another user's
            return False


def logged(daemon: Daemon) -> list[Told]:
    """Return what the log channel has told."""
    lines = [json.loads(line) for line in daemon.log.split("\n")[:-1] if line.startswith("{")]
    return [Told(line["kind"], line["threshold"]) for line in lines if line["event"] == "budget"]


def committed(home: Home) -> list[tuple[int, str, str]]:
    """Return the events in the ledger: number, kind, run."""
    connection = sqlite3.connect(f"file:{home.state / 'ledger.db'}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT seq, kind, coalesce(run, '') FROM events ORDER BY seq").fetchall()
    finally:
        connection.close()


def alerts(home: Home) -> dict[str, tuple[float, int]]:
    """Return interband's files: by session, percent and tokens."""
    directory = home.root / ".interband" / "interstat" / "budget"
    found = {}
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            payload = json.loads(path.read_bytes())["payload"]
            found[path.stem] = (payload["pct_consumed"], payload["total_tokens"])
    return found


def channels(home: Home) -> dict[str, messages.ChannelInfo]:
    """Return each channel as doctor sees it."""
    answer = home.ask(messages.Doctor(wait_ms=30_000))
    assert isinstance(answer, messages.DoctorAnswer), answer
    return {one.name: one for one in answer.channels}


def require_quiet(home: Home) -> None:
    """Wait until every channel is done with everything that has happened."""

    def is_quiet() -> bool:
        return all(one.state == "off" or (one.state, one.waiting) == ("ok", 0) for one in channels(home).values())

    wait_for(is_quiet, "the channels to be done with everything")


def hooked(home: Home, session: str, event: str = "UserPromptSubmit") -> str:
    """Return what a session's hook is answered; empty: nothing."""
    given = json.dumps({"session_id": session, "hook_event_name": event, "cwd": "/elsewhere", "prompt": "go on"})
    answer = home.ask(messages.Hook(input=given.encode(), wait_ms=30_000))
    assert isinstance(answer, messages.HookAnswer), answer
    return str(json.loads(answer.output)["systemMessage"]) if answer.output else ""


def changed(home: Home, request: messages.AnyRequest) -> messages.RunInfo:
    """Change a run and return it as it is then."""
    answer = home.ask(request)
    assert isinstance(answer, messages.RunAnswer), answer
    return answer.run


def state_file(home: Home, *names: str) -> dict[str, str] | None:
    """Return a state file's lines; None when it is not there."""
    path = Path(home.socket.parent, "state", *names)
    try:
        return dict(line.split("=", 1) for line in path.read_text().splitlines())
    except FileNotFoundError:
        return None
