"""One function per request."""

from fluxbudgetd.server.handlers.common import Context

__all__ = ["Context"]
