"""`shell-init`: shell code for `eval` that loads Clavain's budget functions."""

import os
import sys

import fluxbudgetctl
from fluxbudgetctl.arguments import Options, Subcommands, add_command
from fluxbudgetd.wire import codes, shell


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "print shell code that defines Clavain's budget functions, for eval in bash or zsh"
    add_command(commands, "shell-init", description, _shell_init, timeout=None, json=False)


def _shell_init(_options: Options) -> int:
    path = os.path.join(os.path.dirname(os.path.abspath(fluxbudgetctl.__file__)), *shell.FILE.split("/"))
    sys.stdout.write(shell.loading(path))
    return codes.OK
