"""What `doctor` has examined, and each problem with what to do about it."""

from collections.abc import Sequence

from fluxbudgetctl.screens.databases import database_line
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import one_line

_MOST_SESSIONS = 20


def print_doctor(
    path: str, answer: messages.DoctorAnswer | None, service: str, findings: Sequence[messages.Finding]
) -> None:
    """Print what was examined, then the findings.

    `path` is the socket's; `answer` is None if the daemon did not answer; `service` is a line about the systemd
    service, or empty.
    """
    print(f"socket    {one_line(path)}")
    if service:
        print(f"service   {one_line(service)}")
    if answer is not None:
        _print_daemon(answer)
    if answer is not None and answer.news:
        print(f"news      {one_line(answer.news)}")
    if not findings:
        print("no problems found")
    for finding in findings:
        print(f"problem   {one_line(finding.what)}")
        if finding.hint:
            print(f"          hint: {one_line(finding.hint)}")


def _print_daemon(answer: messages.DoctorAnswer) -> None:
    print(f"daemon    fluxbudgetd {answer.version}, pid {answer.pid}, {answer.connections} connections")
    print(f"ledger    {one_line(answer.ledger)}")
    print(f"runs      {answer.active_runs} active, {answer.followed_runs} followed")
    for channel in answer.channels:
        detail = f": {channel.detail}" if channel.detail else ""
        print(one_line(f"channel   {channel.name}: {channel.state}{detail}"))
    for source in answer.sources:
        is_needed = source.state == "ok" or source.is_fault
        note = "" if is_needed else "; not needed: no session is counted from it"
        print(f"source    {source.name}: {source.state} since {source.since} ({one_line(source.path)}){note}")
        if source.anomalies:
            print(f"          {source.anomalies} counts dropped: negative, or not whole numbers")
        if source.name != "interstat":  # interstat's notes are among the findings
            for note in source.notes:
                print(f"          {one_line(note)}")
    for database in answer.databases:
        print(f"database  {database_line(database)}")
    _print_sessions(answer.sessions)


def _print_sessions(sessions: Sequence[messages.SessionSources]) -> None:
    """Print the totals of each session that has several: the transcripts', interstat's, Claude Code's own."""
    several = [session for session in sessions if session.ratio is not None or session.stated_total is not None]
    for session in several[:_MOST_SESSIONS]:
        totals = [f"{session.transcripts_total} in the transcripts"]
        if session.ratio is not None:
            totals.append(f"{session.interstat_total} in interstat")
        if session.stated_total is not None:
            totals.append(f"{session.stated_total} by Claude Code's own count")
        ratio = "" if session.ratio is None else f", ratio {session.ratio:g}"
        words = f"; {session.words}" if session.words else ""
        print(f"session   {one_line(session.session)}: {', '.join(totals)}{ratio}{words}")
    if several[_MOST_SESSIONS:]:
        print(f"          ({len(several) - _MOST_SESSIONS} more sessions: see --json)")
