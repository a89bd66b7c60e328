"""structlog without rich, which it loads wherever it is installed: five megabytes of a daemon's forty, for tracebacks.

Ours are plain, because rich ones carry local variables, which may hold other people's data. Whoever starts the daemon
imports this before anything else.
"""

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # documented: an import of it fails
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
