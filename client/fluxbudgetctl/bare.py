"""The entry point of the script that replaces the native client: `python -I -S bare.py CLIENT WORD…`.

Without `site`, Python starts faster but finds no packages. The hot verbs need none. For everything else this executes
CLIENT, which starts Python the usual way.
"""

import os
import sys


def main() -> int:
    """Carry out the command line after CLIENT, and return the exit code."""
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    del sys.argv[0]
    from fluxbudgetctl import hot  # noqa: PLC0415  found only now
    from fluxbudgetctl import main as client  # noqa: PLC0415

    if hot.parse(sys.argv[1:]) is not None:
        return client.main()
    try:
        os.execv(sys.argv[0], sys.argv)  # noqa: S606  deliberately without a shell
    except OSError as exc:
        if sys.argv[1:2] == ["hook"]:
            return 0  # a hook never disturbs the session
        from fluxbudgetctl.failure import Failure  # noqa: PLC0415

        hint = "install fluxbudget again: this command needs its Python client"
        return Failure(f"{sys.argv[0]}: {exc.strerror}", hint, 70).report()


if __name__ == "__main__":
    sys.exit(main())
