"""What systemd and a service say to each other: readiness and liveness, passed sockets, the journal."""

from fluxbudgetd.systemd.manager import Manager
from fluxbudgetd.systemd.sockets import passed

__all__ = ["Manager", "passed"]
