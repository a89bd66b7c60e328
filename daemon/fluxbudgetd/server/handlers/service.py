"""The daemon itself: its identity, and what is wrong."""

import os
from collections.abc import Iterator, Sequence

import anyio.to_thread

from fluxbudgetd import __version__
from fluxbudgetd.ledger import moved_aside
from fluxbudgetd.model import to_text
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.service import Service
from fluxbudgetd.wire import codes
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.text import shown_path


def ping(context: Context, _request: wire.Ping) -> wire.PingAnswer:
    """Return the daemon's identity."""
    return wire.PingAnswer(
        version=__version__, protocol=codes.VERSION, pid=os.getpid(), started_at=to_text(context.started_at)
    )


async def doctor(context: Context, request: wire.Doctor) -> wire.DoctorAnswer:
    """Refresh the sources, and return what is wrong."""
    service, deadline = context.service, deadline_of(request)
    await service.settings.refresh(deadline)
    service.totals.follower.forget_old_transcripts()
    await service.totals.refresh_sources(deadline)
    damaged = await anyio.to_thread.run_sync(moved_aside, context.state_dir)
    sources, channels = answers.sources(service), answers.channels(service)
    followed = service.totals.followed()
    return wire.DoctorAnswer(
        version=__version__,
        pid=os.getpid(),
        state_dir=shown_path(context.state_dir),
        ledger=shown_path(service.ledger.path),
        sources=sources,
        sessions=answers.session_sources(service, {name for account in followed for name in account.sessions}),
        findings=(
            *_endpoint_findings(context),
            *_source_findings(sources),
            *_service_findings(service, damaged),
            *_channel_findings(channels),
        ),
        active_runs=len(service.accounts.active()),
        followed_runs=len(followed),
        connections=context.connections(),
        channels=channels,
    )


def _endpoint_findings(context: Context) -> Iterator[wire.Finding]:
    """Yield why new clients cannot connect. Only clients that are already connected can ask."""
    fault = context.endpoint_fault()
    if fault is not None:
        yield wire.Finding(what=fault.message, hint=fault.hint)


def _source_findings(sources: Sequence[wire.SourceInfo]) -> Iterator[wire.Finding]:
    for source in sources:
        if source.is_fault:
            what = f"{source.name}: {source.state}: {source.detail} ({source.path})"
            yield wire.Finding(what=what, hint=source.hint)
        if source.name == "interstat":
            yield from (wire.Finding(what=f"{source.name}: {note}", hint="update interstat") for note in source.notes)


def _service_findings(service: Service, damaged: Sequence[str]) -> Iterator[wire.Finding]:
    for fault in service.settings.faults:
        yield wire.Finding(what=fault.what, hint=fault.hint)
    if service.ledger_fault is not None:
        yield wire.Finding(what=service.ledger_fault, hint="check the disk and the permissions")
    for path in damaged:
        yield wire.Finding(
            what=f"a damaged ledger was moved aside: {shown_path(path)}",
            hint="rescue what is needed with 'sqlite3 FILE .recover', then delete it",
        )


def _channel_findings(channels: Sequence[wire.ChannelInfo]) -> Iterator[wire.Finding]:
    for channel in channels:
        if channel.state == "failing":
            yield wire.Finding(what=f"channel {channel.name}: {channel.detail}", hint=channel.hint)
