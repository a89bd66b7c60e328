"""`doctor`: what is wrong, and what to do about it."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fluxbudgetctl import environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.screens.doctor import print_doctor
from fluxbudgetctl.screens.output import print_json
from fluxbudgetctl.socket_check import socket_findings
from fluxbudgetctl.transcript_check import transcript_findings
from fluxbudgetctl.versions import client_version, half_upgrade
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.messages import Finding

if TYPE_CHECKING:
    from fluxbudgetctl.service.doctor import Report

T = TypeVar("T")


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "check everything; print each problem and what to do about it; exit 1 if there is any"
    add_command(commands, "doctor", description, _doctor)


def _doctor(options: Options) -> int:
    """Report what the client sees itself, what the daemon knows, and what the service manager says."""
    examination = _Examination()
    path, answer, service = examination.run(options)
    findings = examination.findings
    if options.json:
        fields = {} if answer is None else msgspec.structs.asdict(answer)
        daemon = {name: value for name, value in fields.items() if name not in ("ok", "findings")}
        print_json({"ok": not findings, "findings": findings, "daemon": daemon or None, "service": service.fields})
    else:
        print_doctor(path, answer, service.line, findings)
    return codes.REFUSED if findings else codes.OK


class _Examination:
    """Collects the findings. A check that fails is itself a finding; the other checks still run."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def run(self, options: Options) -> "tuple[str, messages.DoctorAnswer | None, Report]":
        """Check everything; return the socket's path, the daemon's answer, and what is known about the service."""
        from fluxbudgetctl.service import doctor as service_doctor  # noqa: PLC0415  imports subprocess and hashlib

        path = self._checked("the socket's path", environment.socket, "")
        # Read first: the request below, and even the check of the socket, start a socket-activated daemon.
        before = self._checked("the systemd service", service_doctor.read_before_request, None)
        if path:
            self._add("the socket", lambda: [*socket_findings(path), *service_doctor.removed_socket(path)])
        self._add("the clients", lambda: _half_upgrade(options.native))
        answer = self._checked("the daemon", lambda: _ask(options.timeout), None)
        if answer is not None:
            self.findings.extend(answer.findings)
        self._add(
            "Claude Code's settings",
            lambda: list(transcript_findings(os.environ, environment.working_directory())),
        )
        service = self._checked(
            "the systemd service", lambda: service_doctor.examine(before, answer), service_doctor.Report()
        )
        self.findings.extend(service.findings)
        if answer is not None and answer.version != client_version():
            what = f"the daemon is version {answer.version}, the client {client_version()}"
            hint = service_doctor.INSTALL if service.is_daemon_of_service else "restart fluxbudgetd"
            self.findings.append(Finding(what=what, hint=hint))
        return path, answer, service

    def _add(self, what: str, check: Callable[[], list[Finding]]) -> None:
        self.findings.extend(self._checked(what, check, []))

    def _checked(self, what: str, check: Callable[[], T], otherwise: T) -> T:
        """Return a check's result. If it fails, add a finding and return `otherwise`."""
        try:
            return check()
        except Failure as failure:
            self.findings.append(Finding(what=failure.message, hint=failure.hint))
        except OSError as exc:
            hint = "make it readable, then run doctor again"
            self.findings.append(Finding(what=f"{what} could not be checked: {exc}", hint=hint))
        except Exception as exc:  # noqa: BLE001  doctor has to work when nothing else does
            what = f"{what} could not be checked: {type(exc).__name__}: {exc}"
            self.findings.append(Finding(what=what, hint="this is a defect of fluxbudget; please report it"))
        return otherwise


def _ask(timeout: float) -> messages.DoctorAnswer | None:
    return call(messages.Doctor(cwd=hints().cwd), messages.DoctorAnswer, timeout)


def _half_upgrade(native: str | None) -> list[Finding]:
    half = half_upgrade(native)
    return [] if half is None else [Finding(what=half.message, hint=half.hint)]
