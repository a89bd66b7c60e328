"""Reviews: the decision of a triage as a table, the cost report as Markdown."""

from fluxbudgetctl.screens.output import print_columns, tokens
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.short import grouped
from fluxbudgetd.wire.text import one_line

#: Printed on stderr if no agent has a sample.
NO_HISTORY = "using default cost estimates (no history)"


def print_triage(answer: messages.TriageAnswer) -> None:
    """Print a triage's decision about each agent."""
    print_columns(
        ("AGENT", "CATEGORY", "SCORE", "STAGE", "EST. TOKENS", "SOURCE", "ACTION"),
        [
            (
                one_line(line.name),
                one_line(line.category) + (" (sliced)" if line.sliced else ""),
                f"{line.score:g}",
                str(line.stage) + ("*" if line.protected else ""),
                tokens(line.est_tokens),
                _source(line),
                line.action,
            )
            for line in answer.agents
        ],
    )
    print(answer.summary)
    print(f"verdict: {answer.verdict}, {answer.enforcement}, {answer.triage_id} (* always selected)")


def override_offer(answer: messages.TriageAnswer) -> str:
    """Return how to launch the deferred agents as well, and what they add."""
    deferred = answer.deferred
    what = "1 agent is" if deferred.agents == 1 else f"{deferred.agents} agents are"
    return (
        f"{what} deferred; to launch all agents, use --override REASON, which adds an estimated "
        f"{grouped(deferred.est_tokens)} {answer.cost_basis} tokens"
    )


def print_report(answer: messages.ReportAnswer) -> None:
    """Print the cost report of a review, or of all of a run's reviews, as Markdown."""
    report = answer.report
    budget = "no budget" if report.budget is None else f"{report.budget} {report.cost_basis} tokens"
    print(f"## Cost report\n\nBudget: {budget} ({_cell(report.budget_type)}).\n")
    print("| agent | stage | estimated | actual (billing) | actual (total) | cache read | delta | source |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for agent in report.agents:
        delta = "-" if agent.delta_pct is None else str(agent.delta_pct)
        cells = (
            _cell(agent.name),
            str(agent.stage),
            str(agent.estimated),
            f"{agent.actual_billing}{_partial(agent.partial)}",
            str(agent.actual_total),
            str(agent.cache_read),
            delta if agent.delta_pct in (None, "pending") else f"{agent.delta_pct:+} %",
            _cell(f"{_source(agent)}{', sliced' if agent.slicing_applied else ''}"),
        )
        print(f"| {' | '.join(cells)} |")
    partial = _partial(report.partial)
    print(
        f"| **all** | | {report.estimated_total} | {report.actual_billing}{partial} | {report.actual_total}{partial} "
        f"| {report.cache_read_total}{partial} | | |"
    )
    print("\n| stage | agents | estimated | actual |\n|---|---:|---:|---:|")
    for name, stage in report.by_stage.items():
        actual = f"{stage.actual}{_partial(stage.partial)}"
        print(f"| {name.replace('_', ' ')} | {stage.agents} | {stage.estimated} | {actual} |")
    if report.pending:
        print(f"\nPending: {', '.join(_cell(name) for name in report.pending)}.")
    if report.not_listed:
        print(f"\n{report.not_listed} agents of older reviews are in the sums, but not listed.")
    if report.deferred:
        print("\n| deferred | estimated | reason | used anyway |\n|---|---:|---|---:|")
        for left in report.deferred:
            used = "-" if left.actual_billing is None else str(left.actual_billing)
            print(f"| {_cell(left.name)} | {left.estimated} | {left.reason} | {used} |")


def _source(estimated: messages.TriageLine | messages.ReportAgent) -> str:
    """Return what an estimate comes from: `default`, `interstat (5)`, `transcripts (5, claude-opus-4-6)`."""
    if not estimated.sample_size:
        return estimated.source
    model = "" if estimated.model is None else f", {one_line(estimated.model)}"
    return f"{estimated.source} ({estimated.sample_size}{model})"


def _partial(is_partial: bool) -> str:
    return " (partial)" if is_partial else ""


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
