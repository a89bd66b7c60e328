"""`doctor`: what is wrong, and what to do about it."""

import msgspec

from fluxbudgetctl import environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command
from fluxbudgetctl.calls import call
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.screens.doctor import print_doctor
from fluxbudgetctl.screens.output import print_json
from fluxbudgetctl.socket_check import socket_findings
from fluxbudgetctl.versions import client_version, half_upgrade
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.messages import Finding


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "check everything; print each problem and what to do about it; exit 1 if there is any"
    add_command(commands, "doctor", description, _doctor)


def _doctor(options: Options) -> int:
    """Report what the client sees itself, what the daemon knows, and what the service manager says."""
    from fluxbudgetctl.service import doctor as service_doctor  # noqa: PLC0415  imports subprocess and hashlib

    # Read first: the request below, and even the check of the socket, start a socket-activated daemon.
    before = service_doctor.read_before_request()
    findings = [*socket_findings(environment.socket()), *service_doctor.removed_socket(environment.socket())]
    if half := half_upgrade(options.native):
        findings.append(Finding(what=half.message, hint=half.hint))
    answer = None
    try:
        answer = call(messages.Doctor(), messages.DoctorAnswer, options.timeout)
    except Failure as failure:
        findings.append(Finding(what=failure.message, hint=failure.hint))
    else:
        findings.extend(answer.findings)
    service = service_doctor.examine(before, answer)
    findings.extend(service.findings)
    if answer is not None and answer.version != client_version():
        what = f"the daemon is version {answer.version}, the client {client_version()}"
        hint = service_doctor.INSTALL if service.is_daemon_of_service else "restart fluxbudgetd"
        findings.append(Finding(what=what, hint=hint))
    if options.json:
        fields = {} if answer is None else msgspec.structs.asdict(answer)
        daemon = {name: value for name, value in fields.items() if name not in ("ok", "findings")}
        print_json({"ok": not findings, "findings": findings, "daemon": daemon or None, "service": service.fields})
    else:
        print_doctor(environment.socket(), answer, service.line, findings)
    return codes.REFUSED if findings else codes.OK
