"""Report what the daemon knows to be wrong, and everything that is not counted."""

import os
from collections.abc import Awaitable, Collection, Iterator, Sequence

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd import __version__
from fluxbudgetd.clock import now_micros
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import moved_aside
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.service import Service
from fluxbudgetd.totals import choosing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import ties
from fluxbudgetd.wire.text import shown_path
from fluxbudgetd.wire.transcript_switch import SWITCH, is_switched_off

log = structlog.get_logger()

# A longer list helps no reader, and the answer must fit into a frame.
_MOST_FINDINGS = 100
_LONGEST_FINDING = 1500
# A session that called a hook this long ago has a transcript, if it writes one.
_SILENT_MICROS = 10_000_000


async def doctor(context: Context, request: wire.Doctor) -> wire.DoctorAnswer:
    """Refresh the sources, and return what is wrong. What fails meanwhile is a finding, never an error."""
    service, deadline = context.service, deadline_of(request)
    findings = await _found("the sources", _refreshed(service, deadline, request.cwd))
    sources, channels = (*answers.sources(service), *answers.beads(service)), answers.channels(service)
    followed = service.totals.followed()
    sessions = {name for account in followed for name in account.sessions}
    findings += [
        *_endpoint_findings(context),
        *_settings_findings(service),
        *await _found("the ledger", _ledger_findings(service, deadline)),
        *await _found("the state directory", _directory_findings(context.state_dir)),
        *_source_findings(sources),
        *_environment_findings(),
        *await _found("Claude Code's directories", _place_findings(service, deadline)),
        *_tie_findings(service),
        *_session_findings(service, sessions),
        *_silent_findings(service, followed),
        *await _found("kept responses", _kept_findings(service, sessions, deadline)),
        *_channel_findings(channels),
        *_database_findings(service),
        *_write_back_findings(service),
        *_bead_findings(service),
    ]
    news: list[str] = []
    findings += await _found("the slicing multiplier", _news_findings(service, deadline, news))
    return wire.DoctorAnswer(
        version=__version__,
        pid=os.getpid(),
        state_dir=shown_path(context.state_dir),
        ledger=shown_path(service.ledger.path),
        sources=sources,
        sessions=answers.session_sources(service, sessions),
        findings=_limited(findings),
        active_runs=len(service.accounts.active()),
        followed_runs=len(followed),
        connections=context.connections(),
        channels=channels,
        databases=answers.databases(service),
        news="; ".join(news),
    )


async def _found(what: str, check: Awaitable[list[wire.Finding]]) -> list[wire.Finding]:
    """Return what a check finds; if it fails, that is a finding, too."""
    try:
        return await check
    except Exception as exc:
        # A defect, or a fault that no other part reports. The rest of the answer helps to find it.
        log.exception("a check of doctor failed", what=what)
        failed = f"{what} could not be checked: {type(exc).__name__}: {exc}"
        return [wire.Finding(what=failed, hint="the daemon's log has the details; please report it")]


async def _refreshed(service: Service, deadline: float, cwd: str | None) -> list[wire.Finding]:
    """Bring everything up to date. Failures show in the states that the other checks read."""
    await service.settings.refresh(deadline)
    service.totals.follower.forget_old_transcripts()
    await service.adoption.refresh_all(deadline, cwd)
    await service.totals.refresh_sources(deadline)
    return []


def _endpoint_findings(context: Context) -> Iterator[wire.Finding]:
    """Yield why new clients cannot connect. Only clients that are already connected can ask."""
    fault = context.endpoint_fault()
    if fault is not None:
        yield wire.Finding(what=fault.message, hint=fault.hint)


async def _ledger_findings(service: Service, deadline: float) -> list[wire.Finding]:
    """Return what is wrong with the ledger, as far as one query and the last write show it."""
    with anyio.CancelScope(deadline=deadline):
        try:
            await service.ledger.check()
        except LedgerError as exc:
            return [wire.Finding(what=exc.message, hint=exc.hint)]
        if service.ledger_fault is not None:
            return [wire.Finding(what=service.ledger_fault, hint="check the disk and the permissions")]
        return []
    return [wire.Finding(what="the ledger does not answer", hint="check its disk, and which programs use the file")]


async def _directory_findings(directory: str) -> list[wire.Finding]:
    """Return whether the state directory is there, and which damaged ledgers are in it."""
    try:
        damaged = await anyio.to_thread.run_sync(moved_aside, directory)
    except OSError as exc:
        what = f"the state directory {shown_path(directory)} cannot be read: {exc.strerror}"
        return [wire.Finding(what=what, hint="restart fluxbudgetd, which creates it again")]
    hint = "rescue what is needed with 'sqlite3 FILE .recover', then delete it"
    return [wire.Finding(what=f"a damaged ledger was moved aside: {shown_path(path)}", hint=hint) for path in damaged]


async def _place_findings(service: Service, deadline: float) -> list[wire.Finding]:
    """Return what is wrong with Claude Code's directories."""
    with anyio.CancelScope(deadline=deadline):
        return [wire.Finding(what=what, hint=hint) for what, hint in await service.totals.transcripts.problems()]
    return [wire.Finding(what="Claude Code's directories could not be checked in time", hint="give more --timeout")]


def _settings_findings(service: Service) -> Iterator[wire.Finding]:
    for fault in service.settings.faults:
        yield wire.Finding(what=fault.what, hint=fault.hint)


def _source_findings(sources: Sequence[wire.SourceInfo]) -> Iterator[wire.Finding]:
    for source in sources:
        if source.is_fault and source.name != "transcripts":  # each of those is a finding of its session
            what = f"{source.name}: {source.state}: {source.detail} ({source.path})"
            yield wire.Finding(what=what, hint=source.hint)
        if source.name == "interstat":
            yield from (wire.Finding(what=f"{source.name}: {note}", hint="update interstat") for note in source.notes)


def _environment_findings() -> Iterator[wire.Finding]:
    if is_switched_off(os.environ.get(SWITCH)):
        yield wire.Finding(
            what=f"{SWITCH} is set in the daemon's environment: Claude Code writes no transcripts where it is set",
            hint="unset it where Claude Code is started; sessions without a transcript are counted only from interstat",
        )


def _tie_findings(service: Service) -> Iterator[wire.Finding]:
    """Yield the directories that are the project of several active runs."""
    for directory in service.accounts.shared_directories():
        runs = choosing.ids(service.accounts.active_in(directory))
        yield wire.Finding(
            what=f"{len(runs)} active runs have {directory} as their project: {ties.listed(runs)}",
            hint="finish all but one, or name the run with --run or $FLUXBUDGET_RUN there",
        )


def _session_findings(service: Service, sessions: Collection[str]) -> Iterator[wire.Finding]:
    """Yield what is not counted of the sessions, because it cannot be read."""
    losses, bounds = service.totals.transcripts.losses, service.totals.lower_bounds
    for name in sorted(losses.keys() & sessions):
        for reason in losses[name].unfollowed:
            yield wire.Finding(
                what=f"not counted: {reason} (session {name})",
                hint="until it can be followed, the session's run is stale",
            )
        counted = bounds.of_session(name, service.accounts.session(name))
        for reason in losses[name].unread:
            if reason in counted:
                yield wire.Finding(
                    what=f"the total of session {name} is a lower bound: {reason}",
                    hint="all other lines count; what these lines said cannot be recovered",
                )
        for reason in losses[name].placeholders:
            if reason in counted:
                yield wire.Finding(
                    what=f"the total of session {name} is a lower bound: {reason}",
                    hint="update Claude Code: since 2.1.97 it writes the real output tokens",
                )


def _silent_findings(service: Service, followed: Sequence[RunAccount]) -> Iterator[wire.Finding]:
    """Yield the active sessions of active runs of which nothing can be counted."""
    files = service.totals.transcripts.files
    until = now_micros() - _SILENT_MICROS
    for account in followed:
        for name, session in account.sessions.items():
            since = session.active_since
            if session.run != account.run.id or since is None or since > until:
                continue
            if not files.get(name) and not any(counts.records for counts in session.figures.values()):
                yield wire.Finding(
                    what=f"session {name} of run {account.run.id} is active, but has no transcript and is not counted",
                    hint="its Claude directory may be unknown (--claude-dir), or it writes no transcript"
                    f" (--no-session-persistence, {SWITCH})",
                )


async def _kept_findings(service: Service, sessions: Collection[str], deadline: float) -> list[wire.Finding]:
    """Return the transcripts that are gone although their responses count, as far as the deadline allows."""
    findings = []
    with anyio.CancelScope(deadline=deadline):
        for name in sorted(sessions):
            try:
                kept = await service.totals.transcripts.kept(name)
            except LedgerError as exc:
                return [wire.Finding(what=f"kept responses are unknown: {exc.message}", hint=exc.hint)]
            for file in kept:
                counted = "1 response is" if file.responses == 1 else f"{file.responses} responses are"
                change = "truncated or replaced" if file.is_replaced else "deleted"
                findings.append(
                    wire.Finding(
                        what=f"session {name}: {counted} kept from {file.path}, which was {change}",
                        hint="nothing that was read is lost; what was written just before it may be missing",
                    )
                )
    return findings


def _bead_findings(service: Service) -> Iterator[wire.Finding]:
    """Yield the beads that have no run because their label names an unknown intercore run."""
    for bead, run in service.beads.missing.items():
        if service.accounts.run_of_scope(bead) is None:
            yield wire.Finding(
                what=f"bead {bead} has no run: its label ic_run_id names intercore's run {run}, which was not found",
                hint=f"check 'ic run status {run}' in the project; if the run is gone, remove the label from the bead",
            )


def _channel_findings(channels: Sequence[wire.ChannelInfo]) -> Iterator[wire.Finding]:
    for channel in channels:
        if channel.state == "failing":
            yield wire.Finding(what=f"channel {channel.name}: {channel.detail}", hint=channel.hint)


def _write_back_findings(service: Service) -> Iterator[wire.Finding]:
    """Yield why databases that can be read do not show what their runs have used."""
    readable = {report.path for report in service.adoption.databases if report.status.is_readable}
    for path, fault in service.write_back.faults().items():
        if path in readable:
            yield wire.Finding(what=fault.message, hint=fault.hint)


def _database_findings(service: Service) -> Iterator[wire.Finding]:
    """Yield what is wrong with intercore's databases. An absent one is no problem unless one of its runs is active."""
    for report in service.adoption.databases:
        status = report.status
        is_needed = any(service.accounts.runs[run].run.status == "active" for run in report.runs)
        if not status.is_readable and status.state != "unread" and (is_needed or status.state != "absent"):
            what = f"intercore: {status.state}: {status.detail} ({report.path})"
            yield wire.Finding(what=what, hint=status.hint)
        for finding in report.findings:
            yield wire.Finding(what=f"intercore: {finding}", hint="see docs/sprints.md")


async def _news_findings(service: Service, deadline: float, news: list[str]) -> list[wire.Finding]:
    """Append what people should know although nothing is wrong."""
    news += filter(None, [await service.calibrations.news(deadline)])
    return []


def _limited(findings: Sequence[wire.Finding]) -> tuple[wire.Finding, ...]:
    shown = tuple(
        finding if len(finding.what) <= _LONGEST_FINDING else wire.Finding(what=_cut(finding.what), hint=finding.hint)
        for finding in findings[:_MOST_FINDINGS]
    )
    left = len(findings) - len(shown)
    if not left:
        return shown
    return (*shown, wire.Finding(what=f"{left} more problems", hint="solve the ones above first"))


def _cut(what: str) -> str:
    return f"{what[:_LONGEST_FINDING]}…"
