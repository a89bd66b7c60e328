"""Answers for people: tables with bars and colours on a terminal, plain columns in a pipe."""

import sys
from collections.abc import Iterable, Sequence

from fluxbudgetctl.failure import one_line, say
from fluxbudgetd.wire import messages

_EIGHTHS = " ▏▎▍▌▋▊▉█"
COLOURS = {"ok": "green", "warning": "yellow", "exceeded": "bold red", "unlimited": "cyan"}
_GAP = 2
_SHORTEST_NAME = 8
_MOST_SESSIONS = 20
_NARROWEST_BAR, _WIDEST_BAR = 8, 20


def tokens(count: int | None) -> str:
    """Return a count: digits in groups of three on a terminal, plain ones in a pipe."""
    if count is None:
        return "unlimited"
    return f"{count:,}".replace(",", " ") if _on_terminal() else str(count)


def bar(pct: float, width: int, *, unicode: bool) -> str:
    """Return a bar of `width` cells for 0–100 percent; what is above 100 is full."""
    share = min(max(pct, 0.0), 100.0) / 100
    if not unicode:
        full = int(share * width)
        return "#" * full + "." * (width - full)
    eighths = int(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width, "░")


def status(answer: messages.StatusAnswer) -> None:
    """Print the runs, the sources that cannot be read, and what belongs to no run."""
    if not answer.runs:
        print("no active runs")
    elif _on_terminal():
        _status_table(answer.runs)
    else:
        columns(
            ("RUN", "PHASE", "SPENT", "BUDGET", "PCT", "REMAINING", "RESERVED", "STATE", "GOAL"),
            [_plain_line(line) for line in answer.runs],
        )
    for source in answer.sources:
        if source.state != "ok":
            print(f"stale: {source.name}: {source.state}: {one_line(source.detail)} ({one_line(source.path)})")
    loose = answer.unattributed
    if loose.sessions:
        print(
            f"unattributed: {tokens(loose.billing)} billing tokens in {loose.sessions} sessions that belong to no run"
            " (among interstat's newest 10 000 rows)"
        )


def stale(why: str | None) -> None:
    """Say on stderr that numbers are the last known ones, if they are."""
    if why:
        remark(f"last known numbers: {why}")


def remark(text: str) -> None:
    """Say something on stderr."""
    say(f"fluxbudgetctl: {one_line(text)}")


def run_list(lines: Iterable[messages.RunLine]) -> None:
    """Print one line per run."""
    rows = [
        (
            line.run.id,
            line.run.status,
            line.run.phase,
            f"{tokens(line.spend.spent)}/{tokens(line.spend.budget)}",
            one_line(line.run.scope or "-"),
            one_line(line.run.goal),
        )
        for line in lines
    ]
    if rows:
        columns(("RUN", "STATUS", "PHASE", "SPENT/BUDGET", "SCOPE", "GOAL"), rows)
    else:
        print("no runs")


def run_show(answer: messages.RunShowAnswer) -> None:
    """Print everything about a run."""
    run, spend = answer.run, answer.spend
    facts = [
        ("run", run.id),
        ("goal", run.goal or "-"),
        ("scope", run.scope or "-"),
        ("project", run.project_dir),
        ("status", f"{run.status} since {run.ended_at or run.started_at}"),
        ("phase", f"{run.phase} (of {', '.join(run.phases)})"),
        (
            "budget",
            f"{tokens(run.token_budget)} {run.cost_basis} tokens, {run.enforcement}, warning at {run.warn_pct} %",
        ),
        ("spent", f"{tokens(spend.spent)}{'' if spend.pct is None else f' ({spend.pct} %)'}, {spend.state}"),
        ("measured", tokens(spend.measured)),
        ("provisional", tokens(spend.provisional)),
        ("reserved", tokens(spend.reserved)),
        ("remaining", tokens(spend.remaining)),
    ]
    for name, value in facts:
        print(f"{name + ':':<13}{one_line(value)}")
    if spend.stale_why:
        print(f"{'stale:':<13}{one_line(spend.stale_why)}")
    if spend.budget is not None and spend.pct is not None:
        print(f"Budget: {spend.spent // 1000}k / {spend.budget // 1000}k ({int(spend.pct)}%)")
    _phases(answer.by_phase)
    _stages(answer.by_stage)
    for title, sums in (
        ("agent", answer.by_agent),
        ("model", answer.by_model),
        ("session", answer.by_session),
    ):
        _sums(title, sums)
    _sources(answer.sources)
    if answer.attachments:
        print()
        columns(
            ("ATTACHED SESSION", "SINCE", "UNTIL", "BY"),
            [
                (one_line(one.session), one.since or "its start", one.until or "now", one.origin)
                for one in answer.attachments
            ],
        )


def changed_line(answer: messages.RunAnswer) -> str:
    """Return the line that a change of a run prints."""
    run = answer.run
    note = "" if answer.changed else " (unchanged)"
    budget = "unlimited" if run.token_budget is None else f"{tokens(run.token_budget)} {run.cost_basis} tokens"
    return f"{run.id}: {run.status}, {run.phase}, {budget}, {run.enforcement}, warning at {run.warn_pct} %{note}"


def doctor(path: str, answer: messages.DoctorAnswer | None, service: str, findings: Sequence[messages.Finding]) -> None:
    """Print what was looked at, then what is wrong with what to do. `service`: a line about it, or nothing."""
    print(f"socket    {one_line(path)}")
    if service:
        print(f"service   {one_line(service)}")
    if answer is not None:
        print(f"daemon    fluxbudgetd {answer.version}, pid {answer.pid}, {answer.connections} connections")
        print(f"ledger    {one_line(answer.ledger)}")
        print(f"runs      {answer.active_runs} active, {answer.followed_runs} followed")
        for channel in answer.channels:
            detail = f": {channel.detail}" if channel.detail else ""
            print(one_line(f"channel   {channel.name}: {channel.state}{detail}"))
        for source in answer.sources:
            print(f"source    {source.name}: {source.state} since {source.since} ({one_line(source.path)})")
            if source.anomalies:
                print(f"          {source.anomalies} counts dropped: negative, or not whole numbers")
            if source.name != "interstat":  # whose notes are problems
                for note in source.notes:
                    print(f"          {one_line(note)}")
        _both_sources(answer.sessions)
    _findings(findings)


def _findings(findings: Sequence[messages.Finding]) -> None:
    if not findings:
        print("all is well")
    for finding in findings:
        print(f"problem   {one_line(finding.what)}")
        if finding.hint:
            print(f"          do: {one_line(finding.hint)}")


def _both_sources(sessions: Sequence[messages.SessionSources]) -> None:
    """Print what transcripts and interstat say of the sessions that both of them know."""
    both = [one for one in sessions if one.ratio is not None]
    for one in both[:_MOST_SESSIONS]:
        figures = f"{one.transcripts_total} in the transcripts, {one.interstat_total} in interstat, ratio {one.ratio:g}"
        print(f"session   {one_line(one.session)}: {figures}{f'; {one.words}' if one.words else ''}")
    if both[_MOST_SESSIONS:]:
        print(f"          ({len(both) - _MOST_SESSIONS} more sessions: see --json)")


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # closed by the caller: `>&-`


def _plain_line(line: messages.RunLine) -> tuple[str, ...]:
    spend = line.spend
    return (
        line.run.id,
        line.run.phase,
        str(spend.spent),
        "none" if spend.budget is None else str(spend.budget),
        "-" if spend.pct is None else f"{spend.pct}%",
        "-" if spend.remaining is None else str(spend.remaining),
        str(spend.reserved),
        f"{spend.state}{',stale' if spend.stale else ''}",
        one_line(line.run.goal),
    )


def _status_table(lines: Sequence[messages.RunLine]) -> None:
    from rich.console import Console  # noqa: PLC0415  30 ms that only a person at a terminal pays
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    spent = [f"{tokens(line.spend.spent)} / {tokens(line.spend.budget)}" for line in lines]
    pct = ["-" if line.spend.pct is None else f"{line.spend.pct:.1f}" for line in lines]
    # Numbers and states are never cut; names take what is left, then the bar, then the goal.
    fixed = max(map(len, pct)) + max(map(len, spent)) + max(len(line.spend.state) for line in lines) + 4 * _GAP
    left = max(console.width - fixed, _SHORTEST_NAME)
    run_width = min(max(len(line.run.id) for line in lines), max(left // 2, _SHORTEST_NAME))
    left -= run_width + _GAP
    phase_width = min(max(len(line.run.phase) for line in lines), max(left, 0))
    left -= phase_width + _GAP
    bar_width = min(max(left, 0), _WIDEST_BAR)
    goal_width = left - bar_width - 2 * _GAP
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("RUN", no_wrap=True, overflow="ellipsis", max_width=run_width, min_width=run_width)
    if phase_width >= _SHORTEST_NAME:
        table.add_column("PHASE", no_wrap=True, overflow="ellipsis", max_width=phase_width, min_width=phase_width)
    if bar_width >= _NARROWEST_BAR:
        table.add_column("", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True, min_width=max(map(len, pct)))
    table.add_column("SPENT / BUDGET", justify="right", no_wrap=True, min_width=max(map(len, spent)))
    table.add_column("STATE", no_wrap=True, overflow="ellipsis")
    if goal_width >= _SHORTEST_NAME:
        table.add_column("GOAL", no_wrap=True, overflow="ellipsis", max_width=goal_width)
    for line, share, of_budget in zip(lines, pct, spent, strict=True):
        colour = COLOURS[line.spend.state]
        cells = [Text(line.run.id)]
        if phase_width >= _SHORTEST_NAME:
            cells.append(Text(line.run.phase))
        if bar_width >= _NARROWEST_BAR:
            cells.append(Text(bar(line.spend.pct or 0.0, bar_width, unicode=unicode), style=colour))
        cells += [Text(share, style=colour), Text(of_budget), _state(line)]
        if goal_width >= _SHORTEST_NAME:
            cells.append(Text(one_line(line.run.goal)))
        table.add_row(*cells)
    console.print(table)


def _state(line: messages.RunLine) -> "Text":  # type: ignore[name-defined]  # noqa: F821  rich is imported when needed
    from rich.text import Text  # noqa: PLC0415

    spend = line.spend
    text = Text(spend.state, style=COLOURS[spend.state])
    if spend.reserved:
        text.append(f" +{tokens(spend.reserved)} reserved", style="dim")
    if line.pending:
        text.append(f" {line.pending} pending", style="dim")
    if spend.stale:
        text.append(" stale", style="magenta")
    return text


def _phases(lines: Sequence[messages.PhaseLine]) -> None:
    print()
    columns(
        ("PHASE", "STATE", "SPENT", "PROVISIONAL", "ESTIMATE", "FROM", "INPUT", "OUTPUT", "RECORDS", "PENDING"),
        [
            (
                one_line(one.name),
                one.state + (" (overridden)" if one.override else ""),
                tokens(one.spent),
                tokens(one.provisional),
                tokens(one.estimate),
                f"{one.sample_size} runs" if one.estimate_source == "calibration" else one.estimate_source,
                tokens(one.input),
                tokens(one.output),
                str(one.records),
                str(one.pending),
            )
            for one in lines
        ],
    )


def _stages(lines: Sequence[messages.StageLine]) -> None:
    print()
    columns(
        ("MACRO-STAGE", "SPENT", "ALLOCATED", "PROVISIONAL"),
        [
            (
                one.name,
                tokens(one.spent),
                "-" if one.allocated is None else tokens(one.allocated),
                tokens(one.provisional),
            )
            for one in lines
        ],
    )


def _sources(lines: Sequence[messages.SessionSources]) -> None:
    if not lines:
        return
    print()
    columns(
        ("SESSION", "COUNTS", "TRANSCRIPTS (TOTAL)", "INTERSTAT (TOTAL)", "RATIO", ""),
        [
            (
                one_line(one.session),
                one.counts,
                tokens(one.transcripts_total),
                tokens(one.interstat_total),
                "-" if one.ratio is None else f"{one.ratio:g}",
                one.words,
            )
            for one in lines
        ],
    )


def _sums(title: str, sums: Sequence[messages.Tally]) -> None:
    if not sums:
        return
    print()
    columns(
        (title.upper(), "BILLING", "TOTAL", "INPUT", "OUTPUT", "CACHE READ", "CACHE CREATION", "RECORDS", "PENDING"),
        [
            (
                one_line(one.name) or "-",
                *(
                    tokens(count)
                    for count in (one.billing, one.total, one.input, one.output, one.cache_read, one.cache_creation)
                ),
                str(one.records),
                str(one.pending),
            )
            for one in sums
        ],
    )


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without lines."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
