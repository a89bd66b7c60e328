"""fluxbudgetd under a detector: a call that blocks the event loop raises an exception, which fails the test.

These calls are allowed, because each takes microseconds:

* `sources/interstat/link.py`: one or two calls of `stat` or `access`, and `PRAGMA data_version` without a busy
  timeout. They stay on the loop's own thread because that makes a warm answer fast;
* `sources/stamps.py`: one `stat` for each file and directory of a session, and two for a database of intercore, for the
  same reason;
* `ledger/database.py`: one `stat` of the ledger's own file per transaction;
* structlog: the source lines of a defect's traceback.
"""

import os

import fluxbudgetd.lean  # noqa: F401  first, as in the daemon

# isort: split
from blockbuster import BlockBuster

from fluxbudgetd.cli import main

ALLOWED = {
    "fluxbudgetd/sources/interstat/link.py": {
        "signature",
        "file_identity",
        "was_opened_for_writing",
        "_data_version",
    },
    "fluxbudgetd/sources/stamps.py": {"_stamp"},
    "fluxbudgetd/ledger/database.py": {"_identity"},
    "structlog/_frames.py": {"_format_exception"},
}


def watched() -> int:
    """Run the daemon with the detector on."""
    detector = BlockBuster()
    detector.activate()
    for function in detector.functions.values():
        for file, names in ALLOWED.items():
            function.can_block_in(file, names)
    return main()


if __name__ == "__main__":
    code = watched()
    # The detector patches C types. That may crash the interpreter when it finalizes.
    os._exit(code)
