"""`service`: fluxbudgetd as a systemd user service."""

from fluxbudgetctl.arguments import Options, Parser, Subcommands, add_group
from fluxbudgetctl.screens.output import print_json
from fluxbudgetd.wire import codes


def add(commands: Subcommands) -> None:
    """Add the group."""
    group = add_group(commands, "service", "run fluxbudgetd as a systemd user service that the first call starts")

    install = _add(group, "install", "write and enable the units; a running service switches to them")
    install.set_defaults(run_command=_install)
    install.add_argument("--now", action="store_true", help="start listening at once, not at the next login")
    install.add_argument("--print", action="store_true", help="print what would be written, and write nothing")
    install.add_argument(
        "--force", action="store_true", help="overwrite units that were edited, or not written by this command"
    )

    opening = install.add_mutually_exclusive_group()
    opening.add_argument(
        "--sprints",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="let the service reach the sprints of these projects, or of the projects below these directories: "
        "their .clavain and .beads, the programs on your PATH that it needs, and bd's server",
    )
    opening.add_argument("--no-sprints", action="store_true", help="close what --sprints has opened")

    uninstall = _add(group, "uninstall", "stop, disable and remove the units; keep the ledger and the configuration")
    uninstall.set_defaults(run_command=_uninstall)
    uninstall.add_argument(
        "--force", action="store_true", help="remove units that were edited, or not written by this command"
    )

    status = _add(group, "status", "show whether the service is installed, listens and runs; exit 1 if not")
    status.set_defaults(run_command=_status)
    status.add_argument("--json", action="store_true", help="print JSON")


def _add(group: Subcommands, name: str, description: str) -> Parser:
    return group.add_parser(name, help=description, description=description, allow_abbrev=False)


def _install(options: Options) -> int:
    from fluxbudgetctl.service.install import install, print_units  # noqa: PLC0415  imports subprocess, hashlib

    if options.print:
        print_units(options.sprints, closes=options.no_sprints)
    else:
        install(now=options.now, force=options.force, named=options.sprints, closes=options.no_sprints)
    return codes.OK


def _uninstall(options: Options) -> int:
    from fluxbudgetctl.service.uninstall import uninstall  # noqa: PLC0415  imports subprocess

    uninstall(force=options.force)
    return codes.OK


def _status(options: Options) -> int:
    from fluxbudgetctl.service import describe  # noqa: PLC0415  imports subprocess
    from fluxbudgetctl.service.status import read_status_and_ping  # noqa: PLC0415  imports subprocess

    status, answer = read_status_and_ping()
    if options.json:
        print_json(describe.as_json(status, status.find_outside(answer)))
    else:
        print("\n".join(describe.lines(status, answer)))
    is_well = status.is_installed and (status.socket.is_up or status.service.is_up)
    return codes.OK if is_well else codes.REFUSED
