"""The daemon's values as parts of answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from fluxbudgetd.decisions.attachments import Change
from fluxbudgetd.model import Attachment, Counts, Run, to_text
from fluxbudgetd.policy import adoption, burn
from fluxbudgetd.service import Service
from fluxbudgetd.structs import converted
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire

_LINE_GOAL = 200
# Smaller differences between the sources are normal.
_SIMILAR = 0.95, 1.05
_MOST_REASONS, _LONGEST_REASON = 3, 400
#: The longest list of a run's agents, models, sessions or attachments, so that the answer fits into a frame.
MOST_LINES = 200


def capped(tokens: int) -> int:
    """Return a sum of tokens, at most the largest number that can be sent."""
    return min(tokens, wire.MAX_TOKENS)


def spend(standing: Standing) -> wire.Spend:
    """Return a run's spend."""
    # `converted` would take four times as long, and every hook asks for this.
    balance = standing.balance
    return wire.Spend(
        budget=balance.budget,
        spent=balance.spent,
        measured=balance.measured,
        provisional=balance.provisional,
        reserved=balance.reserved,
        remaining=balance.remaining,
        pct=balance.pct,
        state=balance.state,
        stale=standing.stale_why is not None,
        stale_why=standing.stale_why,
    )


def run_info(run: Run) -> wire.RunInfo:
    """Return a run's settings and state."""
    times = {name: _text(getattr(run, name)) for name in ("started_at", "ended_at", "allowed_until")}
    adopted = run.adopted
    return converted(
        run,
        wire.RunInfo,
        **times,
        adopted_from=None if adopted is None else adopted.database or "beads",
        kept=() if adopted is None else adopted.kept,
        withheld=adoption.withheld_text(run),
    )


def changed_run(change: Change) -> wire.RunAnswer:
    """Return the answer to a request that changes a run."""
    return wire.RunAnswer(
        run=run_info(change.run),
        changed=change.changed,
        moved_from=change.moved_from,
        tied=listed_runs(change.tied),
        hard_by=change.hard_by,
        rule_fault=change.rule_fault,
    )


def run_line(service: Service, account: RunAccount, standing: Standing) -> wire.RunLine:
    """Return a run's entry in a list."""
    info, rate = run_info(standing.run), service.totals.burn(account)
    reasons = service.totals.lower_bounds.of_run(account)
    return wire.RunLine(
        run=msgspec.structs.replace(info, goal=info.goal[:_LINE_GOAL]),
        spend=spend(standing),
        sessions=len({period.session for period in account.attachments()}),
        pending=account.measured().pending,
        burn=capped(rate),
        minutes_left=burn.minutes_left(standing.balance.remaining, rate),
        lower_bound=bool(reasons),
        lower_bound_why=listed(reasons),
    )


def listed_runs(runs: Sequence[str]) -> tuple[str, ...]:
    """Return the first of these run ids, so that the answer fits into a frame."""
    return tuple(runs[:MOST_LINES])


def listed(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return the first few of these sentences, shortened if they are very long."""
    shown = tuple(
        reason if len(reason) <= _LONGEST_REASON else f"…{reason[-_LONGEST_REASON:]}"
        for reason in reasons[:_MOST_REASONS]
    )
    left = len(reasons) - len(shown)
    return (*shown, f"and {left} more") if left else shown


def attachment(period: Attachment) -> wire.AttachmentInfo:
    """Return a period in which a session's usage counts for a run."""
    since = to_text(period.counts_from) if period.counts_from else None
    # An older client knows only two origins.
    origin = "bead" if period.origin == "bead" else "asked"
    return converted(
        period,
        wire.AttachmentInfo,
        since=since,
        until=_text(period.until),
        origin=origin,
        claimed=period.origin == "claim",
    )


def channels(service: Service) -> tuple[wire.ChannelInfo, ...]:
    """Return the channels and the state-file writer, and whether they work."""
    last = service.events.last
    deliveries = service.deliveries.each if service.deliveries else ()
    files = service.state_files
    outputs = [
        *((delivery.channel.name, delivery, delivery.position) for delivery in deliveries),
        *(() if files is None else ((files.name, files, last),)),
    ]
    return tuple(
        wire.ChannelInfo(
            name=name,
            state=output.state,
            detail=output.detail,
            hint=output.hint,
            since=to_text(output.since),
            told=position,
            waiting=last - position,
        )
        for name, output, position in outputs
    )


def sources(service: Service) -> tuple[wire.SourceInfo, ...]:
    """Return the sources and their states."""
    return tuple(
        converted(
            source.status,
            wire.SourceInfo,
            since=to_text(source.since),
            anomalies=source.anomalies,
            is_fault=source.is_fault,
        )
        for source in service.totals.sources
    )


def databases(service: Service) -> tuple[wire.DatabaseInfo, ...]:
    """Return intercore's databases and their runs."""
    written = [service.write_back.state_of(report.path) for report in service.adoption.databases]
    return tuple(
        wire.DatabaseInfo(
            path=report.path,
            state=report.status.state,
            detail=report.status.detail,
            hint=report.status.hint,
            since=to_text(report.since),
            schema=report.schema,
            runs=report.runs[:MOST_LINES],
            portfolios=report.portfolios[:MOST_LINES],
            written_at=_text(last.at),
            write_state=last.state,
            write_fault=last.detail,
        )
        for report, last in zip(service.adoption.databases, written, strict=True)
    )


def beads(service: Service) -> tuple[wire.SourceInfo, ...]:
    """Return the directories in which `bd` was called, and whether it works there."""
    config = service.settings.config.beads
    reports = service.bead_source.reports if config.read or config.write_back else ()
    return tuple(
        converted(
            report.status,
            wire.SourceInfo,
            since=to_text(report.since),
            anomalies=0,
            is_fault=not report.status.is_readable,
        )
        for report in reports
    )


def bead_findings(service: Service) -> Iterator[wire.Finding]:
    """Yield the reasons why beads cannot be read or written."""
    for source in beads(service):
        if source.is_fault:
            what = f"{source.name}: {source.state}: {source.detail} ({source.path})"
            yield wire.Finding(what=what, hint=source.hint)


def session_sources(
    service: Service, sessions: Iterable[str], run: str | None = None
) -> tuple[wire.SessionSources, ...]:
    """Return what each source says about sessions, and what they used before their usage began to count for this run.

    Those whose sources differ come first.
    """
    lines = (_session_sources(service, name, run) for name in sorted(sessions))
    return tuple(sorted(lines, key=lambda line: not line.words)[:MOST_LINES])


def earlier(counts: Counts) -> wire.Earlier:
    """Return what a session used before its first attachment counts."""
    return wire.Earlier(billing=capped(counts.billing), total=capped(counts.total))


def _session_sources(service: Service, session: str, run: str | None) -> wire.SessionSources:
    account = service.accounts.session(session)
    transcripts = account.figures.get("transcripts", Counts())
    interstat = account.figures.get("interstat", Counts())
    ratio = round(interstat.total / transcripts.total, 2) if interstat.total and transcripts.total else None
    reasons = service.totals.lower_bounds.of_session(session, account)
    stated = service.totals.transcripts.stated(session)
    return wire.SessionSources(
        session=session,
        counts="transcripts" if account.counts_transcripts else "interstat",
        transcripts_billing=capped(transcripts.billing),
        transcripts_total=capped(transcripts.total),
        interstat_billing=capped(interstat.billing),
        interstat_total=capped(interstat.total),
        ratio=ratio,
        words=_words(ratio),
        earlier=earlier(Counts() if run is None else account.earlier(run)),
        stated_billing=None if stated is None else capped(stated.billing),
        stated_total=None if stated is None else capped(stated.total),
        lower_bound=bool(reasons),
        lower_bound_why=listed(reasons),
    )


def _words(ratio: float | None) -> str:
    """Return how each source counts, if they differ much. Which of them is right cannot be known here."""
    least, most = _SIMILAR
    if ratio is None or least <= ratio <= most:
        return ""
    rule = (
        "it adds up every line of a response, while here a response counts once"
        if ratio > most
        else "its rows are written after a session or sub-agent ends, and leave out advisors' and compactions' tokens"
    )
    return f"interstat counts {ratio:g} times what the transcripts say: {rule}"


def tallies(sums: Mapping[str, Counts]) -> tuple[wire.Tally, ...]:
    """Return named sums, largest first; beyond `MOST_LINES`, the rest is one line."""
    ordered = sorted(sums, key=lambda name: (-sums[name].billing, name))
    shown, rest = ordered[:MOST_LINES], ordered[MOST_LINES:]
    lines = [tally(name, sums[name]) for name in shown]
    if rest:
        lines.append(tally(f"({len(rest)} more)", sum((sums[name] for name in rest), Counts())))
    return tuple(lines)


def tally(name: str, counts: Counts) -> wire.Tally:
    """Return a named sum."""
    return converted(counts.capped(), wire.Tally, name=name, billing=capped(counts.billing), total=capped(counts.total))


def _text(at: int | None) -> str | None:
    return None if at is None else to_text(at)
