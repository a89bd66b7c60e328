"""The client's own version."""

import importlib.metadata

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes


def client_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("fluxbudget")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def half_upgrade(native: str | None) -> Failure | None:
    """Return a failure if the native client, which passed the command line on, has another version than this one."""
    if native in (None, client_version()):
        return None
    message = f"the native client is version {native}, the Python client {client_version()}"
    return Failure(message, "install fluxbudget again", codes.INTERNAL)
