"""systemd's protocols: readiness and liveness, passed sockets, the journal."""

from fluxbudgetd.systemd.manager import Manager
from fluxbudgetd.systemd.sockets import passed_descriptors

__all__ = ["Manager", "passed_descriptors"]
