"""The daemon itself: is it there, and what is wrong."""

import os

import anyio.to_thread

from fluxbudgetd import __version__
from fluxbudgetd.ledger import moved_aside
from fluxbudgetd.model import to_text
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.wire import codes
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.text import shown_path


def ping(context: Context, _request: wire.Ping) -> wire.PingAnswer:
    """Answer without looking at anything."""
    return wire.PingAnswer(
        version=__version__, protocol=codes.VERSION, pid=os.getpid(), started_at=to_text(context.started_at)
    )


async def doctor(context: Context, request: wire.Doctor) -> wire.DoctorAnswer:
    """Look at the sources and answer with what is wrong."""
    service = context.service
    deadline = deadline_of(request)
    await service.settings.refresh(deadline)
    service.totals.follower.forget_old_transcripts()
    await service.totals.refresh_sources(deadline)
    findings: list[wire.Finding] = []
    for source in answers.sources(service):
        if source.state != "ok":
            findings.append(
                wire.Finding(what=f"{source.name}: {source.state}: {source.detail} ({source.path})", hint=source.hint)
            )
        if source.name == "interstat":
            findings.extend(
                wire.Finding(what=f"{source.name}: {note}", hint="update interstat") for note in source.notes
            )
    findings.extend(wire.Finding(what=fault.what, hint=fault.hint) for fault in service.settings.faults)
    if service.ledger_fault is not None:
        findings.append(wire.Finding(what=service.ledger_fault, hint="check the disk and the permissions"))
    findings.extend(
        wire.Finding(
            what=f"a damaged ledger was moved aside: {shown_path(path)}",
            hint="rescue what is needed with 'sqlite3 FILE .recover', then delete it",
        )
        for path in await anyio.to_thread.run_sync(moved_aside, context.state_dir)
    )
    channels = answers.channels(service)
    findings.extend(
        wire.Finding(what=f"channel {one.name}: {one.detail}", hint=one.hint)
        for one in channels
        if one.state == "failing"
    )
    return wire.DoctorAnswer(
        version=__version__,
        pid=os.getpid(),
        state_dir=shown_path(context.state_dir),
        ledger=shown_path(service.ledger.path),
        sources=answers.sources(service),
        sessions=answers.session_sources(service, {name for one in service.totals.followed() for name in one.sessions}),
        findings=tuple(findings),
        active_runs=len(service.accounts.active()),
        followed_runs=len(service.totals.followed()),
        connections=context.connections(),
        channels=channels,
    )
