"""Random histories of sessions, as Claude Code and its relays write them, and what was truly billed in them."""

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxbudgetd.wire import messages
from harness.authors import (
    DIALECTS,
    NEW_VERSION,
    OLD_VERSION,
    PLAIN_DIALECTS,
    UNREQUESTED,
    Author,
    Billed,
    Session,
    Step,
    Writer,
)
from harness.counting import WAIT_MS, Daemon
from harness.transcript_recount import (
    MAIN,
    Attachments,
    Counted,
    Sums,
    Tokens,
    TranscriptRecount,
    files_of,
    micros,
    plus,
    summed,
)
from harness.transcripts import encoded

PROJECTS = ("-home-me-work", "-home-me-work--worktrees-x")
#: What may happen, and how often.
ACTS = {
    "open": 1, "respond": 14, "go_on": 8, "launch": 4, "fork": 2, "replay": 2, "repeat": 2, "damage": 3,
    "compact": 2, "truncate": 1, "rewrite": 1, "replace": 1, "delete": 1, "move_file": 1, "set_clock_back": 1,
    "start": 1, "attach": 2, "detach": 1, "finish": 1, "read_one": 3, "read_all": 3, "restart": 1,
}  # fmt: skip
PLAIN_ACTS = {"open": 3, "respond": 14, "go_on": 8, "launch": 4, "fork": 3, "repeat": 2, "read_all": 1}


@dataclass
class Run:
    name: str
    started: int
    latest: int
    active: bool = True
    sessions: set[str] = field(default_factory=set)


class History:
    """Applies random acts to files and to a daemon, and compares the daemon's numbers with the recount and the truth.

    With `whole`, every session belongs to a run from its first line to its last. Then the runs together have exactly
    what was billed, unless something was destroyed before it could be read.
    """

    def __init__(self, daemon: Daemon, seed: str, *, whole: bool, odd_times: bool = False, plain: bool = False) -> None:
        self.daemon = daemon
        self.seed = seed
        self.whole = whole
        self.odd_times = odd_times
        self.plain = plain
        self.author = Author(seed, odd_times=odd_times, plain=plain)
        self.recount = TranscriptRecount()
        self.attachments = Attachments()
        self.sessions: list[Session] = []
        self.runs: list[Run] = []
        self.billed: list[Billed] = []
        self.unread: set[Path] = set()
        #: A part of what was billed cannot be known from the files.
        self.is_lossy = False
        #: It cannot be known from the files when, or in which session, something was billed.
        self.is_blurred = odd_times
        self.log: list[str] = []
        self._dialect = self.random.randrange(len(DIALECTS))

    @property
    def random(self) -> random.Random:
        """Return the source of this act's random numbers."""
        return self.author.random

    # What happens

    def go(self, acts: int, weights: Mapping[str, int] = ACTS) -> None:
        """Take random acts, of which `weights` has how often each of them happens; compare at the end."""
        self.start()
        self.open()
        self.open()
        for number in range(acts):
            # Each act has random numbers of its own, so that an act can be left out without changing the others.
            self.author.random = random.Random(f"{self.seed} {number}")
            self.daemon.pass_(self.random.randrange(1, 1500))
            self.act(self.random.choices(list(weights), list(weights.values()))[0])
        self.compare()

    def act(self, name: str) -> None:
        self.log.append(name)
        act: Callable[[], None] = getattr(self, name)
        act()
        if not self.daemon.is_quiet:
            # This daemon may read at any moment. So the order of readings is known only if each act is read at once.
            if self.random.random() < 0.2:
                self.daemon.kill()
            self.compare()

    # Sessions and their files

    def open(self, run: Run | None = None, dialect: str | None = None, version: str | None = None) -> Session:
        """Start a session, perhaps in a run."""
        name = f"s{len(self.sessions)}-{self.seed.replace(' ', '-')}"
        dialects = PLAIN_DIALECTS if self.plain else DIALECTS
        # One after the other, so that a few histories have all of them.
        self._dialect += 1
        session = Session(
            name,
            self.random.choice(PROJECTS),
            dialect or dialects[self._dialect % len(dialects)],
            version or (NEW_VERSION if self.plain or self.random.random() < 0.6 else OLD_VERSION),
        )
        session.writers.append(Writer(session, MAIN, self._project(session) / f"{name}.jsonl"))
        self.sessions.append(session)
        self.log.append(f"  {name}: {session.dialect}")
        if self.whole or run is not None or self.random.random() < 0.6:
            self._attach(session, run or self.random.choice(self.runs))
        return session

    def respond(self) -> None:
        """Begin a response, and perhaps complete it."""
        self._respond(self._any_writer())

    def _respond(self, writer: Writer) -> None:
        if writer.session.dialect == "one id":
            # Otherwise nothing would tell whether the next line is of the old response or of the new one.
            self._complete(writer)
        billed, steps = self.author.compose(writer, self.daemon.now())
        self.billed.append(billed)
        written = self.random.randint(1, len(steps))
        for step in steps[:written]:
            self._write(writer, billed, step)
        if steps[written:]:
            writer.pending.append((billed, steps[written:]))

    def _complete(self, writer: Writer) -> None:
        for billed, steps in writer.pending:
            for step in steps:
                self._write(writer, billed, step)
        writer.pending = []

    def go_on(self) -> None:
        """Write the next line of a response that was begun."""
        writers = [writer for session in self.sessions for writer in session.writers if writer.pending]
        if writers:
            writer = self.random.choice(writers)
            billed, steps = writer.pending[self.random.randrange(len(writer.pending))]
            self._write(writer, billed, steps.pop(0))
            writer.pending = [(each, left) for each, left in writer.pending if left]

    def launch(self) -> None:
        """Start a sub-agent. Its file is where one of Claude Code's versions has it, or it is only quoted."""
        session = self.random.choice(self.sessions[-3:])
        name = f"{self.random.getrandbits(32):08x}"
        beside = self._project(session)
        subagents = beside / session.name / "subagents"
        new = (subagents, subagents, subagents / "workflows" / "wf_1")
        place = self.random.choice((beside, beside, None) if session.version == OLD_VERSION else new)
        if self.plain:
            place = subagents
        if not any(b'"version"' in line for line in self._lines(session)):
            # A session writes its own file before it starts a sub-agent.
            self._append(session.main.path, session.record())
        path = None if place is None else place / f"agent-{name}.jsonl"
        agent = f"agent-{name}"
        if path is not None and place is not beside and self.random.random() < 0.6:
            agent = self.random.choice(("fd-quality", "fd-safety", "Explore"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".meta.json").write_text(json.dumps({"agentType": agent}))
        # (With one id for everything, nothing tells which of a sub-agent's responses a quoted line belongs to.)
        may_quote = session.version == OLD_VERSION and session.dialect != "one id"
        quoted = path is None or (may_quote and self.random.random() < 0.4)
        session.writers.append(Writer(session, agent, path, name, quoted))
        if path is not None and self.random.random() < 0.3:
            # A sub-agent that continues its parent's conversation repeats it.
            for line in self._lines(session)[-3:]:
                self._append(path, line.replace(b'"isSidechain":false', b'"isSidechain":true'))

    def fork(self) -> None:
        """Copy a session's history into another session's file, with or without saying so."""
        session = self.random.choice(self.sessions)
        if any(writer.pending for writer in session.writers) and session.dialect in (*UNREQUESTED, "some"):
            return  # nothing says that the next line of the response is not another response
        says_so = not self.plain and self.random.random() < 0.5
        self.is_blurred |= session.main.path in self.unread or not self._is_followed(session)
        self.is_lossy |= says_so and not self._is_followed(session)
        fork = self.open(dialect=session.dialect, version=session.version)
        for line in self._lines(session):
            copied = line.replace(f'"sessionId":"{session.name}"'.encode(), f'"sessionId":"{fork.name}"'.encode())
            if says_so:
                origin = f'"forkedFrom":{{"sessionId":"{session.name}","messageUuid":"x"}},"sessionId"'.encode()
                copied = copied.replace(b'"sessionId"', origin)  # a damaged line may have two records
            self._append(fork.main.path, copied)

    def replay(self) -> None:
        """Write a response of a session's own conversation again, in a sub-agent's file, under another request id.

        In a fork, the response may be one of the session that it was forked from.
        """
        done = [
            one for one in self.billed
            if one.agent == MAIN and one.request is not None and one.message is not None and any(one.tokens)
            and not any(one is each for each, _ in one.session.main.pending) and not one.below
        ]  # fmt: skip
        if done:
            billed = self.random.choice(done)
            name = str(billed.message).encode()
            session = self.random.choice(
                [one for one in self.sessions if any(name in line for line in self._lines(one))] or [billed.session]
            )
            self._read_first(session)
            if not self.recount.has_own(billed.message):
                return  # the line of the conversation itself was never read
            line = self.author.line(billed, Step(billed.tokens, True, True), self.daemon.now(), sidechain=True)
            path = self._project(session) / session.name / "subagents" / "agent-aside_question-1.jsonl"
            line |= {"sessionId": session.name, "requestId": f"req_aside{self.author.number()}"}
            self._append(path, encoded(line))

    def repeat(self) -> None:
        """Append a part of a file's own history again."""
        writer = self._any_writer()
        if writer.path is not None and writer.path.exists():
            lines = writer.path.read_bytes().splitlines(keepends=True)
            begin = self.random.randrange(len(lines) + 1)
            for line in lines[begin : begin + 5]:
                if line.endswith(b"\n") and b'"usage"' in line:
                    self._append(writer.path, line)

    def damage(self) -> None:
        """Damage a file in a way from which all or a part can be recovered."""
        writer = self._any_writer()
        path = writer.path or writer.session.main.path
        assert path is not None
        kind = self.random.choice(("nuls", "mark", "joined", "cut", "noise"))
        if not path.exists() and path != writer.session.main.path:
            return  # the first line of a sub-agent's file may be what tells its session
        self.log.append(f"  {kind} in {path.name}")
        if kind == "noise":
            self._append(path, self.author.noise())
            return
        if writer.path is not None:
            self._complete(writer)
            self._append(path, self.author.damage(kind, writer.session))
        billed, steps = self.author.compose(writer, self.daemon.now())
        for step in steps:
            self._write(writer, billed, step)
        self.billed.append(billed)

    # What changes a file

    def compact(self) -> None:
        """Replace the beginning of a session's file by a summary, in place."""
        self._change(lambda lines: lines[len(lines) // 2 :], in_place=True)

    def rewrite(self) -> None:
        """Write a file again, in place, with other lines before the old ones."""
        self._change(lambda lines: lines, in_place=True)

    def replace(self) -> None:
        """Rename another file over it."""
        self._change(lambda lines: lines[: len(lines) // 2], in_place=False)

    def truncate(self) -> None:
        writer = self._any_file()
        if writer is not None and writer.path is not None:
            size = writer.path.stat().st_size
            with self._changing(writer):
                os.truncate(writer.path, self.random.choice((0, self.random.randrange(size + 1))))

    def delete(self) -> None:
        writer = self._any_file()
        if writer is not None and writer is writer.session.main and writer.session.version == OLD_VERSION:
            return  # without it, nothing says soon that new files beside it are the session's
        if writer is not None and writer.path is not None:
            with self._changing(writer):
                writer.path.unlink()

    def move_file(self) -> None:
        """Move a session's own file to another project's directory, as happens when it continues in a worktree."""
        session = self.random.choice(self.sessions)
        old = session.main.path
        if session.version == NEW_VERSION and old is not None and old.exists():
            self._read_first(session)
            session.project = self.random.choice(PROJECTS)
            session.main.path = self._project(session) / old.name
            session.main.path.parent.mkdir(parents=True, exist_ok=True)
            old.rename(session.main.path)
            if old in self.unread:
                self.unread.discard(old)
                self.unread.add(session.main.path)

    # Runs

    def start(self) -> None:
        """Start a run. Often, a session begins with it."""
        if len(self.runs) == 4:
            return
        answer = self.daemon.ask(messages.RunStart(project_dir="/p", token_budget="none", wait_ms=WAIT_MS))
        assert isinstance(answer, messages.RunAnswer), answer
        started = micros(answer.run.started_at)
        assert started is not None
        self.runs.append(Run(answer.run.id, started, started))
        if self.random.random() < 0.5:
            self.daemon.pass_(self.random.randrange(1, 300))
            session = self.open(self.runs[-1])
            self._respond(session.main)

    def attach(self) -> None:
        self._attach(self.random.choice(self.sessions), self.random.choice(self.runs))

    def detach(self) -> None:
        session = self.random.choice(self.sessions)
        current = self.attachments.current(session.name)
        if not self.whole and current is not None:
            run = next(run for run in self.runs if run.name == current.run)
            self._read({session.name})
            answer = self.daemon.ask(messages.RunDetach(detach=session.name, wait_ms=WAIT_MS))
            assert isinstance(answer, messages.RunAnswer), answer
            self.attachments.detach(session.name, now=self._time_of_change(session, run))
            self._settle([run])

    def finish(self) -> None:
        """End a run. Its sessions go on counting for it until they are attached to another."""
        active = [run for run in self.runs if run.active]
        if len(active) > 1:
            run = self.random.choice(active)
            self._read(run.sessions)
            answer = self.daemon.ask(messages.RunFinish(run=run.name, wait_ms=WAIT_MS))
            assert isinstance(answer, messages.RunAnswer), answer
            run.active = False
            run.latest = max(run.latest, self.daemon.now())

    def set_clock_back(self) -> None:
        if self.odd_times:
            self.daemon.pass_(-self.random.randrange(100_000))

    def restart(self) -> None:
        self.daemon.restart()
        self.recount.restart()

    # Reading and comparing

    def read_one(self) -> None:
        self._settle([self.random.choice(self.runs)])

    def read_all(self) -> None:
        """Read all runs, one after the other or in one batch, and compare."""
        if self.random.random() < 0.5:
            self._read(set().union(*(run.sessions for run in self.runs)))
            answer = self.daemon.ask(messages.RunList(all=True, wait_ms=WAIT_MS))
            assert isinstance(answer, messages.RunListAnswer), answer
        self.compare()

    def compare(self) -> None:
        """Compare with the recount and, as far as it can be known, with the truth."""
        self._settle(self.random.sample(self.runs, len(self.runs)))
        found: Sums = {}
        sums = summed(self.recount.counted(), self.attachments.run_of)
        truth = self._truth()
        for run in self.runs:
            expected = sums.get(run.name, {})
            report = self.daemon.shown(run.name)
            assert report.by_agent == _by(expected, 0), self._differs(run, "agents", report.by_agent, _by(expected, 0))
            assert report.by_model == _by(expected, 1), self._differs(run, "models", report.by_model, _by(expected, 1))
            for cell, tokens in expected.items():
                found[cell] = plus(found.get(cell, (0, 0, 0, 0)), tokens)
            if not self.is_blurred and not self.is_lossy:
                billed = truth.get(run.name, {})
                assert expected == billed, self._differs(run, "the truth", expected, billed)
        billed = _sum(truth)
        # If its last line was lost, only the whole prompt is known, as input.
        has_whole_prompts = self.is_lossy and any(session.dialect == "split" for session in self.sessions)
        if not has_whole_prompts:
            assert _size(found) <= _size(billed), self._differs(None, "more than was billed", found, billed)
        if self.whole and not self.is_lossy:
            assert found == billed, self._differs(None, "what was billed", found, billed)

    def _truth(self) -> dict[str | None, Sums]:
        """Return run → what was billed while its sessions belonged to it."""
        billed = [
            Counted(one.session.name, one.at, one.agent, model, tokens)
            for one in self.billed
            for model, tokens in [(one.model, one.tokens), *((each["model"], each["tokens"]) for each in one.below)]
        ]
        return summed(billed, self.attachments.run_of)

    def _differs(self, run: Run | None, what: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> str:
        where = "" if run is None else f" of {run.name}"
        cells = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        differences = "\n".join(f"{cell}: found {found.get(cell)}, expected {expected.get(cell)}" for cell in cells)
        acts = "\n".join(self.log)
        return f"{what}{where}:\n{differences}\nseed {self.seed!r} in {self.daemon.claude_dir}:\n{acts}"

    def _settle(self, runs: list[Run]) -> None:
        """Ask for runs, one after the other. The daemon reads their sessions, and so does the recount."""
        for run in runs:
            self._read(run.sessions)
            self.daemon.shown(run.name)

    def _read(self, names: set[str]) -> None:
        for name in sorted(names, key=lambda name: (self.attachments.of[name][0].since, name)):
            files = files_of(self.daemon.claude_dir, name)
            current = self.attachments.current(name)
            latest = max([run.latest for run in self.runs if current is not None and run.name == current.run] or [0])
            self.recount.read(name, files, self.daemon.now(), latest)
            self.unread -= {file.path for file in files}

    # Helpers

    def _attach(self, session: Session, run: Run) -> None:
        current = self.attachments.current(session.name)
        left = [one for one in self.runs if current is not None and one.name == current.run]
        is_known = session.name in self.attachments.of
        whole = self.whole or self.random.random() < 0.3
        self._read({session.name} if is_known else set())
        before = self.daemon.now()
        answer = self.daemon.ask(messages.RunAttach(attach=session.name, run=run.name, whole=whole, wait_ms=WAIT_MS))
        assert isinstance(answer, messages.RunAnswer), answer
        # Attaching it to the same run changes at most how far the attachment reaches back.
        now = 0 if left == [run] else self._time_of_change(session, run)
        self.attachments.attach(session.name, run.name, now=now, started=run.started, whole=whole)
        for one in left:
            one.latest = max(one.latest, now)
        run.sessions.add(session.name)
        # The daemon reads both runs in one batch.
        self._read(set().union(*(one.sessions for one in (*left, run))))
        self._settle([*left, run])
        known = self.attachments.of[session.name]
        shown, expected = self.daemon.counts_from(run.name, session.name), known[-1].counts_from
        if expected == now > 0 and not self.daemon.is_quiet:
            # It took the time a little earlier, and nothing was written in between.
            assert before <= shown <= expected
            known[-1] = known[-1]._replace(counts_from=shown)
        else:
            assert shown == expected

    def _time_of_change(self, session: Session, run: Run) -> int:
        """Return the time of a change to a session's attachments. It is never before an earlier change."""
        ends = [max(one.since, one.until or 0) + 1 for one in self.attachments.of.get(session.name, [])]
        run.latest = max(self.daemon.now(), run.latest, *ends)
        return run.latest

    def _is_followed(self, session: Session) -> bool:
        return session.name in self.attachments.of

    def _read_first(self, session: Session) -> None:
        """Read a session before its files are changed, or note that something may be lost."""
        runs = [run for run in self.runs if session.name in run.sessions]
        if runs and self.random.random() < 0.9:
            self._settle(runs[:1])
        elif any(writer.path in self.unread for writer in session.writers):
            self.is_lossy = True

    def _project(self, session: Session) -> Path:
        return self.daemon.claude_dir / "projects" / session.project

    def _any_writer(self) -> Writer:
        """Return a writer of one of the newest sessions, so that much happens in few of them."""
        return self.random.choice(self.random.choice(self.sessions[-3:]).writers)

    def _any_file(self) -> Writer | None:
        """Return a file that is there; seldom one of a session that no run reads."""
        writer = self._any_writer()
        followed = self._is_followed(writer.session) or self.random.random() < 0.1
        return writer if followed and writer.path is not None and writer.path.exists() else None

    def _lines(self, session: Session) -> list[bytes]:
        path = session.main.path
        if path is None or not path.exists():
            return []
        return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def _change(self, change: Callable[[list[bytes]], list[bytes]], *, in_place: bool) -> None:
        writer = self._any_file()
        if writer is None or writer.path is None:
            return
        with self._changing(writer):
            lines = change(writer.path.read_bytes().splitlines(keepends=True))
            summary = writer.session.record(isCompactSummary=True, uuid=self.author.uuid())
            other = writer.path if in_place else writer.path.with_suffix(".new")
            other.write_bytes(b"".join([summary, *lines]))
            other.replace(writer.path)

    def _changing(self, writer: Writer) -> "Changing":
        return Changing(self, writer)

    def _append(self, path: Path | None, raw: bytes) -> None:
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(raw)
        self.unread.add(path)

    def _write(self, writer: Writer, billed: Billed, step: Step) -> None:
        """Write a line of a response, where its sub-agent has a file; the session's file may quote it."""
        line = self.author.line(billed, step, self.daemon.now(), sidechain=writer is not writer.session.main)
        if writer.path is not None:
            self._append(writer.path, encoded(line))
        if writer.quoted:
            if writer.session.dialect == "one id":
                self._complete(writer.session.main)
            self._append(writer.session.main.path, self.author.quoted(writer, line))
        billed.tokens = step.tokens


class Changing:
    """A change of a file that writes nothing: it lowers no run's total."""

    def __init__(self, history: History, writer: Writer) -> None:
        self.history = history
        self.writer = writer
        self.before: dict[str, int] = {}

    def __enter__(self) -> None:
        history = self.history
        if self.writer.session.dialect == "one id":
            # Which response its next line belongs to is in the part of the file that may go.
            history._complete(self.writer)  # noqa: SLF001  a part of the history
        history._read_first(self.writer.session)  # noqa: SLF001  a part of the history
        history.log.append(f"  {self.writer.path}")
        if self.writer.path not in history.unread:
            history.compare()
            self.before = {run.name: history.daemon.shown(run.name).total for run in history.runs}

    def __exit__(self, kind: object, *_exc: object) -> None:
        if self.before and kind is None:
            self.history.compare()
            after = {run.name: self.history.daemon.shown(run.name).total for run in self.history.runs}
            assert after == self.before, self.history._differs(None, "totals after a change", after, self.before)  # noqa: SLF001


def _by(sums: Sums, index: int) -> dict[str, Tokens]:
    found: dict[str, Tokens] = {}
    for cell, tokens in sums.items():
        found[cell[index]] = plus(found.get(cell[index], (0, 0, 0, 0)), tokens)
    return found


def _sum(sums: dict[str | None, Sums]) -> Sums:
    """Return what all runs, and none, have together."""
    found: Sums = {}
    for cells in sums.values():
        for cell, tokens in cells.items():
            found[cell] = plus(found.get(cell, (0, 0, 0, 0)), tokens)
    return found


def _size(sums: Sums) -> int:
    return sum(sum(tokens) for tokens in sums.values())
