"""The verbs that people call: one function each, from parsed options to printed answer and exit code."""

import argparse
import importlib.metadata
import json
import os
import time
from typing import TypeVar

import msgspec

from fluxbudgetctl import environment, rendering
from fluxbudgetctl.connection import exchange, not_understood
from fluxbudgetctl.failure import Failure, refused
from fluxbudgetctl.surroundings import look_around
from fluxbudgetd.wire import codes, messages

Options = argparse.Namespace
A = TypeVar("A", bound=messages.Answer)
N = TypeVar("N", bound=messages.Naming)


def call(request: messages.AnyRequest, answer: type[A], timeout: float, path: str | None = None) -> A:
    """Ask the daemon (at another path than usual); raises `Failure` for an error answer, too."""
    request = msgspec.structs.replace(request, wait_ms=int(timeout * 1000))
    body = exchange(path or environment.socket(), messages.encode(request), timeout)
    try:
        found = messages.decode_answer(body)
    except msgspec.DecodeError as exc:
        raise not_understood(str(exc)) from None
    if isinstance(found, messages.ErrorAnswer):
        raise refused(msgspec.to_builtins(found.error))
    if not isinstance(found, answer):
        raise not_understood(f"it is a {type(found).__name__}")
    return found


def status(options: Options) -> int:
    """`status`."""
    request = messages.Status(run=options.run, scope=options.scope, session=options.session)
    until = time.monotonic() + options.timeout
    answer = page = call(request, messages.StatusAnswer, options.timeout)
    while page.next is not None:
        page = call(messages.Status(after=page.next), messages.StatusAnswer, _left(until))
        answer = msgspec.structs.replace(answer, runs=answer.runs + page.runs)
    if options.json:
        return print_json({"runs": answer.runs, "sources": answer.sources, "unattributed": answer.unattributed})
    rendering.status(answer)
    return codes.OK


def run_start(options: Options) -> int:
    """`run start`."""
    project = options.project or environment.working_directory()
    if project is None:
        raise Failure("the working directory does not exist any more", "name one with --project", codes.BAD_INPUT)
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
        session=options.session,
        transcript=_transcript(options),
    )
    return _print_changed(call(request, messages.RunAnswer, options.timeout), options, bare_id=True)


def run_list(options: Options) -> int:
    """`run list`."""
    until = time.monotonic() + options.timeout
    lines: tuple[messages.RunLine, ...] = ()
    page: messages.RunListAnswer | None = None
    while page is None or page.next is not None:
        request = messages.RunList(all=options.all, after=page.next if page else None)
        page = call(request, messages.RunListAnswer, _left(until))
        lines += page.runs
    if options.json:
        return print_json({"runs": lines})
    rendering.run_list(lines)
    return codes.OK


def run_show(options: Options) -> int:
    """`run show`."""
    answer = call(_named(messages.RunShow, options), messages.RunShowAnswer, options.timeout)
    if options.json:
        fields = msgspec.structs.asdict(answer)
        return print_json({name: value for name, value in fields.items() if name != "ok"})
    rendering.run_show(answer)
    return codes.OK


def run_set(options: Options) -> int:
    """`run set`."""
    if options.budget is None and options.warn_pct is None and options.enforcement is None:
        raise Failure("nothing to change", "give --budget, --warn-pct or --enforcement", codes.USAGE)
    request = msgspec.structs.replace(
        _named(messages.RunSet, options),
        token_budget=options.budget,
        warn_pct=options.warn_pct,
        enforcement=options.enforcement,
    )
    return _print_changed(call(request, messages.RunAnswer, options.timeout), options)


def run_attach(options: Options) -> int:
    """`run attach`."""
    found = hints()
    others = tuple(name for name in found.sessions if name != options.session)
    request = messages.RunAttach(
        attach=options.session,
        run=options.run,
        scope=options.scope,
        transcript=_transcript(options),
        hints=msgspec.structs.replace(found, sessions=others),
    )
    return _print_changed(call(request, messages.RunAnswer, options.timeout), options)


def run_detach(options: Options) -> int:
    """`run detach`."""
    request = messages.RunDetach(detach=options.session, run=options.run, scope=options.scope)
    return _print_changed(call(request, messages.RunAnswer, options.timeout), options)


def run_finish(options: Options) -> int:
    """`run finish`."""
    return _print_changed(call(_named(messages.RunFinish, options), messages.RunAnswer, options.timeout), options)


def run_cancel(options: Options) -> int:
    """`run cancel`."""
    return _print_changed(call(_named(messages.RunCancel, options), messages.RunAnswer, options.timeout), options)


def advance(options: Options) -> int:
    """`advance`."""
    request = messages.Advance(
        run=options.run,
        scope=options.scope,
        session=options.session,
        hints=hints(),
        from_phase=options.from_phase,
        to_phase=options.to_phase,
        override=options.override or environment.override(),
    )
    answer = call(request, messages.AdvanceAnswer, options.timeout)
    rendering.stale(answer.spend.stale_why)
    if answer.note:
        rendering.remark(answer.note)
    if answer.overridden:
        rendering.remark(f"the budget is exceeded; overridden: {answer.overridden}")
    if options.json:
        fields = msgspec.structs.asdict(answer)
        print_json({name: value for name, value in fields.items() if name != "ok"})
    else:
        print(answer.line)
    return codes.OK if answer.advanced else codes.REFUSED


def doctor(options: Options) -> int:
    """`doctor`: what the client can see by itself, what the daemon knows, what the service manager says."""
    from fluxbudgetctl.service.findings import INSTALL, before, seen  # noqa: PLC0415  it imports this module

    unasked = before()  # looking at the socket is asking, too
    findings = list(look_around(environment.socket()))
    if half := _half_upgrade(options):
        findings.append(messages.Finding(what=half.message, hint=half.hint))
    answer = None
    try:
        answer = call(messages.Doctor(), messages.DoctorAnswer, options.timeout)
    except Failure as failure:
        findings.append(messages.Finding(what=failure.message, hint=failure.hint))
    else:
        findings.extend(answer.findings)
    service = seen(unasked, answer)
    findings.extend(service.findings)
    if answer is not None and answer.version != client_version():
        what = f"the daemon is version {answer.version}, the client {client_version()}"
        hint = INSTALL if service.of_the_service else "restart fluxbudgetd"
        findings.append(messages.Finding(what=what, hint=hint))
    if options.json:
        fields = {} if answer is None else msgspec.structs.asdict(answer)
        kept = {name: value for name, value in fields.items() if name not in ("ok", "findings")}
        print_json({"ok": not findings, "findings": findings, "daemon": kept or None, "service": service.fields})
    else:
        rendering.doctor(environment.socket(), answer, service.line, findings)
    return codes.REFUSED if findings else codes.OK


def version(options: Options) -> int:
    """`version`: the client's own is printed even when the daemon is away."""
    client = {"client": options.native or client_version(), "client_kind": "native" if options.native else "python"}
    line = f"fluxbudgetctl {client['client']} ({client['client_kind']})"
    if half := _half_upgrade(options):
        half.tell()
    try:
        answer = call(messages.Ping(), messages.PingAnswer, options.timeout)
    except Failure:
        if options.json:
            print_json({**client, "daemon": None, "protocol": codes.VERSION})
        else:
            print(line, flush=True)
        raise
    if options.json:
        return print_json({**client, "daemon": answer.version, "protocol": answer.protocol})
    print(f"{line}\nfluxbudgetd {answer.version} (pid {answer.pid})")
    return codes.OK


def _half_upgrade(options: Options) -> Failure | None:
    """Return what to say when the native client and this one, which share the verbs, are of different versions."""
    if options.native in (None, client_version()):
        return None
    what = f"the native client is version {options.native}, the Python client {client_version()}"
    return Failure(what, "install fluxbudget again", codes.INTERNAL)


def client_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("fluxbudget")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _transcript(options: Options) -> str | None:
    """Return the transcript's path as an absolute one; the daemon resolves it, and looks where it leads."""
    return None if options.transcript is None else environment.text(os.path.abspath(options.transcript))


def _left(until: float) -> float:
    """Return what is left of the time limit for the next page; raises `Failure` when nothing is."""
    left = until - time.monotonic()
    if left <= 0:
        raise Failure("not all runs were there within the time limit", "give more --timeout", codes.NO_ANSWER)
    return left


def _named(kind: type[N], options: Options) -> N:
    return kind(run=options.run, scope=options.scope, session=options.session, hints=hints())


def hints() -> messages.Hints:
    """Return what the environment says of the run that is meant."""
    return msgspec.convert(environment.hints(), messages.Hints)


def _print_changed(answer: messages.RunAnswer, options: Options, *, bare_id: bool = False) -> int:
    if options.json:
        return print_json({"run": answer.run, "changed": answer.changed})
    print(answer.run.id if bare_id else rendering.changed_line(answer))
    return codes.OK


def print_json(value: object) -> int:
    """Print one JSON value."""
    print(json.dumps(msgspec.to_builtins(value)))  # ASCII, whatever the terminal's encoding
    return codes.OK
