"""Which client this is: its version, and how it was started."""

import importlib.metadata
import os
import sys
from typing import NamedTuple

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes


class Client(NamedTuple):
    """The client that the user has called."""

    version: str
    kind: str
    """`native`, `script` (the native client's substitute where no compiler was available) or `python`."""
    build: str | None = None
    """How a native client was linked: `musl`, `glibc static` or `dynamic`; None if it does not say."""

    @property
    def shown(self) -> str:
        """Return the kind and the build."""
        return f"{self.kind}, {self.build}" if self.build else self.kind


def client_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("fluxbudget")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def called_client(native: str | None) -> Client:
    """Return the client that was called. `native` is the native client's `VERSION` or `VERSION BUILD`, or None."""
    if native is None:
        is_script = os.path.basename(sys.argv[0]) == "fluxbudgetctl"
        return Client(client_version(), "script" if is_script else "python")
    version, _, build = native.partition(" ")
    return Client(version, "native", build or None)


def half_upgrade(native: str | None) -> Failure | None:
    """Return a failure if the native client that started this one has another version."""
    called = called_client(native)
    if called.version == client_version():
        return None
    message = f"the native client is version {called.version}, the Python client {client_version()}"
    return Failure(message, "install fluxbudget again", codes.INTERNAL)
