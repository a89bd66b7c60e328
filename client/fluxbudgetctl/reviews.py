"""The verbs about reviews: `estimates`, `triage`, `report`, `calibrate`."""

import os
import sys
import tempfile

import msgspec

from fluxbudgetctl import environment, rendering
from fluxbudgetctl.failure import Failure, one_line
from fluxbudgetctl.rendering import columns, tokens
from fluxbudgetctl.verbs import Options, call, hints, print_json
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import unfold

# The request has to fit into a frame; what is larger is no list of agents.
_MAX_INPUT = 1 << 20


class _Agents(msgspec.Struct):
    agents: tuple[messages.TriageAgent, ...]


def estimates(options: Options) -> int:
    """`estimates`: the JSON that flux-drive's own estimator prints."""
    project = options.project
    request = messages.Estimates(
        model=options.model,
        slicing=options.slicing,
        project_dir=None if project is None else environment.text(os.path.realpath(project)),
        hints=hints(),
    )
    answer = call(request, messages.EstimatesAnswer, options.timeout)
    rendering.stale(answer.stale_why)
    factor = answer.slicing_multiplier
    return print_json(
        {
            "estimates": answer.estimates,
            "defaults": answer.defaults,
            "slicing_multiplier": int(factor) if factor.is_integer() else factor,
        }
    )


def triage(options: Options) -> int:
    """`triage`: agents on stdin, the decision on stdout."""
    request = messages.TriageRequest(
        run=options.run,
        scope=options.scope,
        session=options.session,
        hints=hints(),
        agents=_read_agents(),
        input_type=options.input_type,
        model=options.model,
        slicing=options.slicing,
        override=options.override,
    )
    answer = call(request, messages.TriageAnswer, options.timeout)
    rendering.stale(answer.stale_why)
    if answer.note:
        rendering.remark(answer.note)
    if options.table:
        _triage_table(answer)
    else:
        fields = msgspec.structs.asdict(answer)
        print_json({name: value for name, value in fields.items() if name != "ok"})
    return codes.REFUSED if answer.verdict == "blocked" else codes.OK


def report(options: Options) -> int:
    """`report`: the cost report, for programs or (`--markdown`) for people."""
    request = messages.Report(
        triage=options.triage, run=options.run, scope=options.scope, session=options.session, hints=hints()
    )
    answer = call(request, messages.ReportAnswer, options.timeout)
    rendering.stale(answer.stale_why)
    if options.markdown:
        _markdown(answer)
        return codes.OK
    fields = msgspec.structs.asdict(answer.report)
    return print_json({**fields, "run": answer.run, "triages": answer.triages, "stale_why": answer.stale_why})


def calibrate(options: Options) -> int:
    """`calibrate`: what history teaches; with `--write` kept for estimates to come."""
    answer = call(messages.Calibrate(), messages.CalibrateAnswer, options.timeout)
    rendering.stale(answer.stale_why)
    if options.write and answer.stale_why:
        raise Failure(
            f"not written: {answer.stale_why}", "see 'fluxbudgetctl doctor', then calibrate again", codes.REFUSED
        )
    if options.write:
        _write(
            os.fsdecode(unfold(answer.path)),
            msgspec.json.format(msgspec.json.encode(answer.calibration), indent=2) + b"\n",
        )
        rendering.remark(f"written to {answer.path}")
    if options.json:
        return print_json(answer.calibration)
    _calibration(answer.calibration)
    return codes.OK


def _read_agents() -> tuple[messages.TriageAgent, ...]:
    """Return the agents on stdin; raises `Failure` that names the place."""
    hint = 'give {"agents": [{"name": "fd-safety", "score": 4, "stage": 1}, …]} on stdin'
    if sys.stdin is None or sys.stdin.isatty():
        raise Failure("no agents: stdin is a terminal, or closed", hint, codes.BAD_INPUT)
    data = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise Failure("agents: more than 1 MiB of input", hint, codes.BAD_INPUT)
    try:
        agents = msgspec.json.decode(data, type=_Agents).agents
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Failure(f"agents: {_placed(str(exc))}", hint, codes.BAD_INPUT) from None
    for index, one in enumerate(agents):
        if not -messages.MAX_TOKENS <= one.stage <= messages.MAX_TOKENS:  # it could not even be sent
            raise Failure(f"agents[{index}].stage is {one.stage}"[:200], "1 or 2 is allowed", codes.BAD_INPUT)
    return agents


def _placed(problem: str) -> str:
    """Return a decoder's complaint with the place as one writes it: `agents[3].score`."""
    if problem == "Input data was truncated":
        return "the JSON is truncated: it ends before it is whole, or there is none"
    what, _, place = problem.partition(" - at `$.")
    return f"{place.rstrip('`')}: {what}" if place else what


def _triage_table(answer: messages.TriageAnswer) -> None:
    columns(
        ("AGENT", "CATEGORY", "SCORE", "STAGE", "EST. TOKENS", "SOURCE", "ACTION"),
        [
            (
                one_line(line.name),
                one_line(line.category) + (" (sliced)" if line.sliced else ""),
                f"{line.score:g}",
                str(line.stage) + ("*" if line.protected else ""),
                tokens(line.est_tokens),
                f"{line.source} ({line.sample_size})" if line.sample_size else line.source,
                line.action,
            )
            for line in answer.agents
        ],
    )
    print(answer.summary)
    print(f"verdict: {answer.verdict}, {answer.enforcement}, {answer.triage_id} (* always selected)")


def _markdown(answer: messages.ReportAnswer) -> None:
    report = answer.report
    budget = "no budget" if report.budget is None else f"{report.budget} {report.cost_basis} tokens"
    print(f"## Cost report\n\nBudget: {budget} ({_cell(report.budget_type)}).\n")
    print("| agent | stage | estimated | actual (billing) | actual (total) | cache read | delta | source |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for one in report.agents:
        delta = "-" if one.delta_pct is None else str(one.delta_pct)
        cells = (
            _cell(one.name),
            str(one.stage),
            str(one.estimated),
            f"{one.actual_billing}{' (partial)' if one.partial else ''}",
            str(one.actual_total),
            str(one.cache_read),
            delta if one.delta_pct in (None, "pending") else f"{one.delta_pct:+} %",
            f"{one.source}{', sliced' if one.slicing_applied else ''}",
        )
        print(f"| {' | '.join(cells)} |")
    partial = " (partial)" if report.partial else ""
    print(
        f"| **all** | | {report.estimated_total} | {report.actual_billing}{partial} | {report.actual_total}{partial} "
        f"| {report.cache_read_total}{partial} | | |"
    )
    print("\n| stage | agents | estimated | actual |\n|---|---:|---:|---:|")
    for name, stage in report.by_stage.items():
        mark = " (partial)" if stage.partial else ""
        print(f"| {name.replace('_', ' ')} | {stage.agents} | {stage.estimated} | {stage.actual}{mark} |")
    if report.pending:
        print(f"\nPending: {', '.join(_cell(name) for name in report.pending)}.")
    if report.not_listed:
        print(f"\n{report.not_listed} agents of older reviews are in the sums, but not listed.")
    if report.deferred:
        print("\n| deferred | estimated | reason | used all the same |\n|---|---:|---|---:|")
        for left in report.deferred:
            ran = "-" if left.actual_billing is None else str(left.actual_billing)
            print(f"| {_cell(left.name)} | {left.estimated} | {left.reason} | {ran} |")


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _calibration(found: messages.Calibration) -> None:
    for title, lines in (("PHASE", found.phases), ("AGENT", found.agents)):
        rows = [
            (
                one_line(name) or "-",
                str(one.sample_size),
                *(tokens(count) for count in (one.billing.mean, one.billing.p50, one.billing.p90, one.total.mean)),
            )
            for name, one in lines.items()
        ]
        if rows:
            columns((title, "SAMPLES", "MEAN (BILLING)", "P50", "P90", "MEAN (TOTAL)"), rows)
        else:
            print(f"{title.lower()}s: nothing measured yet")
        print()
    slicing = found.slicing
    if slicing.multiplier is not None:
        verdict = f"proposed: {slicing.multiplier}"
    elif slicing.median is None:
        verdict = "nothing measured yet"
    else:
        verdict = "kept"
    median = "" if slicing.median is None else f", median {slicing.median} of {slicing.sliced_runs} sliced runs"
    print(f"slicing multiplier: {slicing.was}{median}; {verdict}")


def _write(path: str, data: bytes) -> None:
    """Replace a file whole, or leave it as it is; raises `Failure`."""
    directory = os.path.dirname(path)
    temporary = None
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".calibration-", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as exc:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise Failure(
            f"{path} cannot be written: {exc.strerror}", "check the directory and its permissions", codes.INTERNAL
        ) from None
