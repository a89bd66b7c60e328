"""Requests and answers as msgspec structs: the one definition of the protocol.

A request is a map `{"v": 1, "op": "…", …}`; its answer `{"ok": true, "op": "…", …}` or
`{"ok": false, "error": {"code", "message", "hint"}}`. The receiver ignores fields that it does not know, so an older
daemon can serve a newer client. Tokens are integers; percentages have one decimal (rounded down, so that a limit is
never shown before it is reached; above 100 if more is spent); times are ISO-8601 UTC text. `docs/protocol.md` is
generated from these modules.

Import the names from here: the package re-exports every public name.
"""

from fluxbudgetd.wire.messages.base import *
from fluxbudgetd.wire.messages.budget import *
from fluxbudgetd.wire.messages.calibration import *
from fluxbudgetd.wire.messages.codec import *
from fluxbudgetd.wire.messages.commands import *
from fluxbudgetd.wire.messages.events import *
from fluxbudgetd.wire.messages.hooks import *
from fluxbudgetd.wire.messages.reviews import *
from fluxbudgetd.wire.messages.runs import *
from fluxbudgetd.wire.messages.service import *
from fluxbudgetd.wire.messages.shell import *
from fluxbudgetd.wire.messages.spend import *
