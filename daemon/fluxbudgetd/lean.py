"""Import structlog without rich, which costs five of the daemon's forty megabytes and is only used for tracebacks.

The daemon's tracebacks are plain text: rich ones show local variables, which may hold other people's data. Import this
module before anything else.
"""

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # documented: importing it fails
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
