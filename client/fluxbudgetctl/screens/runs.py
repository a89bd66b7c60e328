"""Runs: a list, one run in full, and the line printed after a change."""

from collections.abc import Iterable, Sequence

from fluxbudgetctl.screens.output import print_columns, tokens
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import one_line


def print_run_list(lines: Iterable[messages.RunLine]) -> None:
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
        print_columns(("RUN", "STATUS", "PHASE", "SPENT/BUDGET", "SCOPE", "GOAL"), rows)
    else:
        print("no runs")


def change_line(answer: messages.RunAnswer) -> str:
    """Return the line that a change of a run prints."""
    run = answer.run
    suffix = "" if answer.changed else " (unchanged)"
    if answer.moved_from is not None:
        suffix = f" (the session has moved from run {answer.moved_from})"
    budget = "unlimited" if run.token_budget is None else f"{tokens(run.token_budget)} {run.cost_basis} tokens"
    return f"{run.id}: {run.status}, {run.phase}, {budget}, {run.enforcement}, warning at {run.warn_pct} %{suffix}"


def allowance_line(answer: messages.RunAnswer) -> str:
    """Return the line that `allow` prints."""
    run = answer.run
    if answer.changed:
        return f"{run.id}: {_allowed(run)}"
    why = "has no budget" if run.token_budget is None else f"has {run.enforcement} enforcement"
    return f"run {run.id} {why}, so nothing stops it: there is nothing to allow"


def _allowed(run: messages.RunInfo) -> str:
    """Return what the run is allowed beyond its budget; empty if nothing."""
    to = "" if run.allowed_to is None else f"up to {tokens(run.allowed_to)} {run.cost_basis} tokens"
    until = "" if run.allowed_until is None else f"until {run.allowed_until}, however much it spends"
    both = ", and ".join(text for text in (to, until) if text)
    return f"allowed to go on {both}" if both else ""


def print_run(answer: messages.RunShowAnswer) -> None:
    """Print everything about a run."""
    _print_facts(answer)
    _print_phases(answer.by_phase)
    _print_stages(answer.by_stage)
    for title, sums in (
        ("agent", answer.by_agent),
        ("model", answer.by_model),
        ("session", answer.by_session),
    ):
        _print_sums(title, sums)
    _print_sources(answer.sources)
    if answer.attachments:
        print()
        print_columns(
            ("ATTACHED SESSION", "SINCE", "UNTIL", "BY"),
            [
                (one_line(period.session), period.since or "its start", period.until or "now", _origin(period))
                for period in answer.attachments
            ],
        )


def _origin(period: messages.AttachmentInfo) -> str:
    return "intercore" if period.claimed else period.origin


def _print_facts(answer: messages.RunShowAnswer) -> None:
    run, spend, earlier = answer.run, answer.spend, answer.earlier
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
    if run.adopted_from is not None:
        facts.append(("adopted from", run.adopted_from))
    if run.kept:
        facts.append(("kept", f"{', '.join(run.kept)}: set by hand"))
    if run.withheld:
        facts.append(("withheld", f"{run.withheld}: the run is hard, so confirm it with run set in a terminal"))
    if allowed := _allowed(run):
        facts.append(("allowance", allowed))
    not_counted = earlier.billing if run.cost_basis == "billing" else earlier.total
    if not_counted:
        words = "tokens before the run started, not counted (--whole counts them)"
        facts.append(("earlier", f"{tokens(not_counted)} {run.cost_basis} {words}"))
    if spend.stale_why:
        facts.append(("stale", spend.stale_why))
    facts += [("lower bound", reason) for reason in answer.lower_bound_why]
    width = max(13, *(len(name) + 2 for name, _ in facts))
    for name, value in facts:
        print(f"{name + ':':<{width}}{one_line(value)}")
    if spend.budget is not None and spend.pct is not None:
        print(f"Budget: {spend.spent // 1000}k / {spend.budget // 1000}k ({int(spend.pct)}%)")


def _print_phases(lines: Sequence[messages.PhaseLine]) -> None:
    print()
    print_columns(
        ("PHASE", "STATE", "SPENT", "PROVISIONAL", "ESTIMATE", "FROM", "INPUT", "OUTPUT", "RECORDS", "PENDING"),
        [
            (
                one_line(line.name),
                line.state + (" (overridden)" if line.override else ""),
                tokens(line.spent),
                tokens(line.provisional),
                tokens(line.estimate),
                f"{line.sample_size} runs" if line.estimate_source == "calibration" else line.estimate_source,
                tokens(line.input),
                tokens(line.output),
                str(line.records),
                str(line.pending),
            )
            for line in lines
        ],
    )


def _print_stages(lines: Sequence[messages.StageLine]) -> None:
    print()
    print_columns(
        ("MACRO-STAGE", "SPENT", "ALLOCATED", "PROVISIONAL"),
        [
            (
                line.name,
                tokens(line.spent),
                "-" if line.allocated is None else tokens(line.allocated),
                tokens(line.provisional),
            )
            for line in lines
        ],
    )


def _print_sums(title: str, sums: Sequence[messages.Tally]) -> None:
    if not sums:
        return
    print()
    print_columns(
        (title.upper(), "BILLING", "TOTAL", "INPUT", "OUTPUT", "CACHE READ", "CACHE CREATION", "RECORDS", "PENDING"),
        [
            (
                one_line(tally.name) or "-",
                *(
                    tokens(count)
                    for count in (
                        tally.billing,
                        tally.total,
                        tally.input,
                        tally.output,
                        tally.cache_read,
                        tally.cache_creation,
                    )
                ),
                str(tally.records),
                str(tally.pending),
            )
            for tally in sums
        ],
    )


def _print_sources(lines: Sequence[messages.SessionSources]) -> None:
    if not lines:
        return
    print()
    print_columns(
        ("SESSION", "COUNTS", "TRANSCRIPTS (TOTAL)", "INTERSTAT (TOTAL)", "RATIO", ""),
        [
            (
                one_line(line.session),
                line.counts,
                tokens(line.transcripts_total),
                tokens(line.interstat_total),
                "-" if line.ratio is None else f"{line.ratio:g}",
                "; ".join(
                    filter(None, (line.words, *(f"lower bound: {one_line(why)}" for why in line.lower_bound_why)))
                ),
            )
            for line in lines
        ],
    )
