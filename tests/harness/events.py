"""Events and what the channels deliver, observed from outside the daemon."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple, Self

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, wait_for

#: A program that appends its standard input to the file named by its argument.
APPENDING = '#!/bin/sh\nexec cat >> "$1"\n'


class Passed(NamedTuple):
    """A threshold that was passed: the kind of its event and its percentage."""

    kind: str
    pct: int


FIFTY = Passed("budget.threshold", 50)
EIGHTY = Passed("budget.threshold", 80)
WARNING = Passed("budget.warning", 80)
NINETY_FIVE = Passed("budget.threshold", 95)
HUNDRED = Passed("budget.threshold", 100)
EXCEEDED = Passed("budget.exceeded", 100)


class Subscriber:
    """A subscriber. `events` has the events it has received, `subscribed` is the daemon's first answer."""

    def __init__(self, home: Home, since: int | None = None, run: str | None = None, heartbeat_ms: int = 0) -> None:
        self.wire = Wire(home.socket)
        request = messages.Subscribe(since=since, run=run, heartbeat_ms=heartbeat_ms)
        try:
            answer = self.wire.ask(request)
        except (OSError, EOFError):
            self.close()
            raise
        assert isinstance(answer, messages.SubscribedAnswer), answer
        self.subscribed = answer
        self.events: list[messages.EventAnswer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.wire.socket.close()

    def next(self) -> messages.AnyAnswer:
        """Return the next answer; raises EOFError at the end of the stream."""
        answer = messages.decode_answer(self.wire.receive())
        assert not isinstance(answer, messages.ErrorAnswer), answer
        if isinstance(answer, messages.EventAnswer):
            self.events.append(answer)
        return answer

    def until(self, kind: str, pct: int | None = None) -> messages.EventAnswer:
        """Read up to the next event of this kind (and of this threshold, if one is given), and return it."""
        while True:
            answer = self.next()
            is_it = isinstance(answer, messages.EventAnswer) and answer.kind == kind
            if is_it and pct in (None, self.events[-1].data.get("threshold")):
                return self.events[-1]

    def read_to(self, seq: int) -> list[int]:
        """Read until the event with this number has arrived; return the numbers of all events so far."""
        while not self.events or self.events[-1].seq < seq:
            self.next()
        return self.seqs

    def read_to_end(self) -> list[messages.AnyAnswer]:
        """Read until the stream ends; return the answers that were left."""
        found = []
        with contextlib.suppress(EOFError):
            while True:
                found.append(self.next())
        return found

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.events]

    @property
    def thresholds(self) -> list[Passed]:
        return [
            Passed(event.kind, int(event.data["threshold"] or 0)) for event in self.events if is_threshold(event.kind)
        ]


def is_threshold(kind: str) -> bool:
    return kind in ("budget.threshold", "budget.warning", "budget.exceeded")


def configure(home: Home, text: str = "", *, argv: list[str] | None = None, command: str = "") -> None:
    """Write the configuration file. `argv` and `command` (more lines) make the table of the command channel.

    Desktop notifications are off, because the user who runs the tests may have a desktop.
    """
    file = home.root / ".config" / "fluxbudget" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = "" if argv is None else f"[channels.command]\nargv = {json.dumps(argv)}\n{command}\n"
    new = file.with_suffix(".new")
    new.write_text(f"{text}\n[channels.desktop]\nenabled = false\n{table}")
    new.replace(file)


class CommandProgram:
    """The command channel's program. It appends each event to a file."""

    def __init__(self, home: Home) -> None:
        self.path = home.root / "events.jsonl"
        script = home.root / "append-event"
        script.write_text(APPENDING)
        script.chmod(0o700)
        self.argv = [str(script), str(self.path)]
        self._mark = os.fsencode(f"HOME={home.root}")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events it has received, in order. An incomplete last line is not counted yet."""
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    @property
    def thresholds(self) -> list[Passed]:
        return [Passed(event["kind"], event["data"]["threshold"]) for event in self.events]

    def wait_until_ended(self) -> None:
        """Wait until no process of the program is left. It outlives a killed daemon and may still be appending.

        Its processes are found by the environment that they inherit from the daemon. Their names are no help: a new
        process has the daemon's name before `exec`, and the script becomes `cat`.
        """
        wait_for(
            lambda: not any(map(self._belongs_to_it, Path("/proc").glob("[0-9]*"))), "the command's program to end"
        )

    def _belongs_to_it(self, process: Path) -> bool:
        try:
            return self._mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # the process has ended, or is another user's
            return False


def logged_thresholds(daemon: Daemon) -> list[Passed]:
    """Return the passed thresholds in the daemon's log."""
    lines = [json.loads(line) for line in daemon.log.split("\n")[:-1] if line.startswith("{")]
    return [Passed(line["kind"], line["threshold"]) for line in lines if line["event"] == "budget threshold passed"]


def committed_events(home: Home) -> list[tuple[int, str, str]]:
    """Return the events in the ledger: number, kind and run."""
    connection = sqlite3.connect(f"file:{home.state / 'ledger.db'}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT seq, kind, coalesce(run, '') FROM events ORDER BY seq").fetchall()
    finally:
        connection.close()


def source_events(home: Home) -> list[str]:
    """Return the kinds of the sources' events in the ledger."""
    return [kind for _seq, kind, _data in committed_events(home) if kind.startswith("source.")]


def interband_files(home: Home) -> dict[str, tuple[float, int]]:
    """Return the contents of interband's files: percent and tokens, by session."""
    directory = home.root / ".interband" / "interstat" / "budget"
    found = {}
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # removed since the directory was read
            payload = json.loads(path.read_bytes())["payload"]
            found[path.stem] = (payload["pct_consumed"], payload["total_tokens"])
    return found


def channels(home: Home) -> dict[str, messages.ChannelInfo]:
    """Return doctor's view of each channel, by name."""
    answer = home.ask(messages.Doctor(wait_ms=30_000))
    assert isinstance(answer, messages.DoctorAnswer), answer
    return {one.name: one for one in answer.channels}


def wait_until_delivered(home: Home) -> None:
    """Wait until every enabled channel works and has delivered all events."""

    def is_delivered() -> bool:
        return all(one.state == "off" or (one.state, one.waiting) == ("ok", 0) for one in channels(home).values())

    wait_for(is_delivered, "every channel to have delivered everything")


def hook_message(home: Home, session: str, event: str = "UserPromptSubmit") -> str:
    """Call a session's hook and return the message that it shows, or an empty string."""
    given = json.dumps({"session_id": session, "hook_event_name": event, "cwd": "/elsewhere", "prompt": "go on"})
    answer = home.ask(messages.Hook(input=given.encode(), wait_ms=30_000))
    assert isinstance(answer, messages.HookAnswer), answer
    return str(json.loads(answer.output)["systemMessage"]) if answer.output else ""


def change_run(home: Home, request: messages.AnyRequest) -> messages.RunInfo:
    """Send a request that changes a run; return the changed run."""
    answer = home.ask(request)
    assert isinstance(answer, messages.RunAnswer), answer
    return answer.run


def read_state_file(home: Home, *names: str) -> dict[str, str] | None:
    """Return the fields of a state file, or None if it does not exist."""
    path = Path(home.socket.parent, "state", *names)
    try:
        return dict(line.split("=", 1) for line in path.read_text().splitlines())
    except FileNotFoundError:
        return None
