"""`run`: start, list, show, change and end runs."""

import argparse
import os
from typing import TypeVar

import msgspec

from fluxbudgetctl import arguments, environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_group, add_naming, add_transcript
from fluxbudgetctl.calls import TimeLimit, call, hints, transcript
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.screens.output import note, print_json
from fluxbudgetctl.screens.runs import change_line, print_run, print_run_list
from fluxbudgetd.wire import codes, messages, ties

N = TypeVar("N", bound=messages.Naming)


def add(commands: Subcommands) -> None:
    """Add the group."""
    runs = add_group(commands, "run", "start, list, show, change and end runs")
    _add_start(runs)
    listing = add_command(runs, "list", "list the active runs", _list)
    listing.add_argument("--all", action="store_true", help="include runs that have ended")
    add_naming(add_command(runs, "show", "show a run by phase, macro-stage, agent, model and session", _show))
    _add_set(runs)
    _add_attach(runs)
    add_naming(add_command(runs, "finish", "end a run as finished", _finish))
    add_naming(add_command(runs, "cancel", "end a run as cancelled", _cancel))


def _add_start(runs: Subcommands) -> None:
    parser = add_command(
        runs, "start", "start a run and print its id; repeating the command finds the same run", _start
    )
    parser.add_argument("--id", type=arguments.text, help="the run's id (default: generated)")
    parser.add_argument("--scope", type=arguments.text, metavar="BEAD", help="the bead the run is about")
    parser.add_argument(
        "--project", type=arguments.path, metavar="DIR", help="the run's directory (default: the working directory)"
    )
    parser.add_argument("--goal", type=arguments.text, metavar="TEXT", help="one line for people")
    parser.add_argument("--complexity", type=int, metavar="1-5", help="sets the default budget (default: 3)")
    parser.add_argument(
        "--budget", type=arguments.budget, metavar="N", help="tokens, or 'none' (default: 250000 at complexity 3)"
    )
    parser.add_argument("--warn-pct", type=int, metavar="1-99", help="percentage that warns (default: 80)")
    parser.add_argument(
        "--enforcement", type=arguments.text, metavar="soft|hard", help="what an exceeded budget does (default: soft)"
    )
    parser.add_argument(
        "--cost-basis",
        type=arguments.text,
        metavar="billing|total",
        help="count input and output tokens, or cache tokens as well (default: billing)",
    )
    parser.add_argument("--phases", type=arguments.phases, metavar="A,B,C", help="the run's phases, in order")
    session = parser.add_mutually_exclusive_group()
    session.add_argument(
        "--session",
        type=arguments.text,
        metavar="S",
        help="attach this session (default: the Claude Code session that the command runs in)",
    )
    session.add_argument("--no-session", action="store_true", help="attach no session")
    _add_whole(parser)
    add_transcript(parser)


def _add_whole(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--whole", action="store_true", help="count all usage of the session, including that before the run started"
    )


def _add_set(runs: Subcommands) -> None:
    parser = add_command(runs, "set", "change an active run", _set)
    add_naming(parser)
    parser.add_argument("--budget", type=arguments.budget, metavar="N", help="tokens, or 'none'")
    parser.add_argument("--warn-pct", type=int, metavar="1-99", help="percentage that warns")
    parser.add_argument("--enforcement", type=arguments.text, metavar="soft|hard", help="what an exceeded budget does")


def _add_attach(runs: Subcommands) -> None:
    attach = add_command(runs, "attach", "attach a session to a run from now on", _attach)
    detach = add_command(runs, "detach", "detach a session from its run from now on", _detach)
    for parser in (attach, detach):
        parser.add_argument("--session", type=arguments.text, required=True, metavar="S", help="the session's id")
    _add_whole(attach)
    add_transcript(attach)
    for parser in (attach, detach):
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--run", type=arguments.text, metavar="ID", help="the run's id")
        group.add_argument("--scope", type=arguments.text, metavar="BEAD", help="the bead the run is about")


def _start(options: Options) -> int:
    project = options.project or environment.working_directory()
    if project is None:
        raise Failure("the working directory no longer exists", "name one with --project", codes.BAD_INPUT)
    known = hints().sessions
    session = options.session or (known[0] if known and not options.no_session else None)
    if options.whole and session is None:
        raise Failure("--whole needs a session", "name it with --session", codes.USAGE)
    request = messages.RunStart(
        id=options.id,
        scope=options.scope,
        project_dir=environment.text(os.path.realpath(project)),
        project_given=options.project is not None,
        goal=options.goal,
        complexity=options.complexity,
        token_budget=options.budget,
        warn_pct=options.warn_pct,
        enforcement=options.enforcement,
        cost_basis=options.cost_basis,
        phases=options.phases,
        session=session,
        whole=options.whole,
        transcript=transcript(options.transcript),
    )
    return _change(request, options, print_id=True)


def _list(options: Options) -> int:
    limit = TimeLimit(options.timeout)
    runs: tuple[messages.RunLine, ...] = ()
    page: messages.RunListAnswer | None = None
    while page is None or page.next is not None:
        request = messages.RunList(all=options.all, after=page.next if page else None, cwd=hints().cwd)
        page = call(request, messages.RunListAnswer, limit.left())
        runs += page.runs
    if options.json:
        print_json({"runs": runs})
    else:
        print_run_list(runs)
    return codes.OK


def _show(options: Options) -> int:
    answer = call(_naming(messages.RunShow, options), messages.RunShowAnswer, options.timeout)
    if options.json:
        fields = msgspec.structs.asdict(answer)
        print_json({name: value for name, value in fields.items() if name != "ok"})
    else:
        print_run(answer)
    return codes.OK


def _set(options: Options) -> int:
    if options.budget is None and options.warn_pct is None and options.enforcement is None:
        raise Failure("nothing to change", "give --budget, --warn-pct or --enforcement", codes.USAGE)
    request = msgspec.structs.replace(
        _naming(messages.RunSet, options),
        token_budget=options.budget,
        warn_pct=options.warn_pct,
        enforcement=options.enforcement,
    )
    return _change(request, options)


def _attach(options: Options) -> int:
    known = hints()
    # Do not use the session as a hint: it is what gets attached.
    others = tuple(name for name in known.sessions if name != options.session)
    request = messages.RunAttach(
        attach=options.session,
        whole=options.whole,
        run=options.run,
        scope=options.scope,
        transcript=transcript(options.transcript),
        hints=msgspec.structs.replace(known, sessions=others),
    )
    return _change(request, options)


def _detach(options: Options) -> int:
    return _change(messages.RunDetach(detach=options.session, run=options.run, scope=options.scope), options)


def _finish(options: Options) -> int:
    return _change(_naming(messages.RunFinish, options), options)


def _cancel(options: Options) -> int:
    return _change(_naming(messages.RunCancel, options), options)


def _naming(kind: type[N], options: Options) -> N:
    return kind(run=options.run, scope=options.scope, session=options.session, hints=hints())


def _change(request: messages.AnyRequest, options: Options, *, print_id: bool = False) -> int:
    answer = call(request, messages.RunAnswer, options.timeout)
    if options.json:
        fields = msgspec.structs.asdict(answer)
        more = {name: fields[name] for name in ("tied", "hard_by", "rule_fault") if fields[name]}
        print_json({"run": answer.run, "changed": answer.changed, "moved_from": answer.moved_from, **more})
    elif print_id:
        print(answer.run.id)
        if answer.moved_from is not None:
            note(f"the session has moved here from run {answer.moved_from}")
        if answer.tied:
            note(ties.started(answer.tied))
        if answer.hard_by is not None:
            note(f"the run is hard, because {answer.hard_by} says so")
        if answer.rule_fault is not None:
            note(f"a project's rule about enforcement is not applied: {answer.rule_fault}")
    else:
        print(change_line(answer))
    return codes.OK
