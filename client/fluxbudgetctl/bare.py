"""The entry point for the piped verbs where Python's packages are known: `python -I -S bare.py PROGRAM WORD…`.

Without `site`, Python starts faster but finds no packages. All that these verbs may need is beside this package.
PROGRAM is the path of the script that was called.
"""

import os
import sys


def main() -> int:
    """Carry out the command line after PROGRAM, and return the exit code."""
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    del sys.argv[0]
    from fluxbudgetctl.main import main as client  # noqa: PLC0415  found only now

    return client()


if __name__ == "__main__":
    sys.exit(main())
