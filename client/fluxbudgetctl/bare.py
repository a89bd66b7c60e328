"""The entry point for the piped verbs where Python's packages are known: `python -I -S bare.py PROGRAM WORD…`.

Without `site`, Python starts faster but finds no packages. These verbs only need packages that are beside this one.
PROGRAM is the path of the script that was called.
"""

import posix
import sys


def main() -> int:
    """Carry out the command line after PROGRAM, and return the exit code."""
    sys.path.append(__file__.rpartition("/fluxbudgetctl/")[0])  # `os.path` takes longer to import than all the rest
    del sys.argv[0]
    from fluxbudgetctl.main import main as client  # noqa: PLC0415  only now it can be found

    return client()


if __name__ == "__main__":
    # All output is flushed, so skip the interpreter's shutdown, which would only take time.
    posix._exit(main())  # noqa: SLF001  public, despite its name
