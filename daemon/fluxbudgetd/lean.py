"""Import the libraries without the parts that the daemon never uses.

* structlog without rich, which takes 5 MiB. rich is only used for tracebacks, and the daemon's are plain text: rich
  ones show local variables, which may hold other people's data.
* asyncio, anyio, hashlib and hmac without OpenSSL, which takes 4 MiB. Nothing uses TLS on a Unix socket, and Python has
  hash functions of its own.

Import this module before anything else. It changes nothing in a process that has already loaded these modules.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@contextmanager
def _replaced(name: str, module: ModuleType | None) -> Iterator[None]:
    """Replace a module for imports in this block; None makes them fail."""
    sys.modules[name] = module  # type: ignore[assignment]  # None is documented
    try:
        yield
    finally:
        if name in sys.modules and sys.modules[name] is module:
            del sys.modules[name]


class _UnusedSsl(ModuleType):
    """Stand-in for `ssl`. Loads the real module if anything but the type in anyio's annotations is used."""

    class SSLContext:
        """Not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for `__path__`
            raise AttributeError(name)
        if sys.modules.get("ssl") is self:
            del sys.modules["ssl"]
        return getattr(import_module("ssl"), name)


if not {"asyncio", "ssl"} & sys.modules.keys():
    with _replaced("ssl", None):
        import asyncio  # noqa: F401
    with _replaced("ssl", _UnusedSsl("ssl")):
        from anyio import wait_readable  # noqa: F401  loads all that uses it

# Some distributions build Python without most of its own hash functions.
if not {"hashlib", "hmac"} & sys.modules.keys() and find_spec("_md5") is not None:
    with _replaced("_hashlib", None):
        import hashlib  # noqa: F401
        import hmac  # noqa: F401  `secrets` imports it

if not {"structlog", "rich"} & sys.modules.keys():
    with _replaced("rich", None):
        import structlog  # noqa: F401
