"""Programs in Python that stand in for other programs."""

import os
import shlex
import sys
from pathlib import Path


def install_python(program: Path, code: str, *flags: str) -> None:
    """Write a program that runs Python code with this interpreter; the code is beside it, in `NAME.py`.

    A shell starts it, because a `#!` line cannot name an interpreter whose path has a space. The code runs outside the
    virtual environment, which may be in a /tmp that the service does not see.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    source = program.with_name(f"{program.name}.py")
    source.write_text(code)
    program.write_text(f'#!/bin/sh\nexec {shlex.join([os.path.realpath(sys.executable), *flags, str(source)])} "$@"\n')
    program.chmod(0o700)
