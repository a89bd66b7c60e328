"""A notification server that prints one line of JSON per notification: python notification_server.py ADDRESS [OPTION]…

--plain: without body-markup. --hang N: never answers the first N notifications. --refuse: answers with an error.
--odd: answers with the wrong type. --leave: releases its name before it reports its capabilities.
"""

import argparse
import asyncio
import json
import sys
from typing import Any

from dbus_fast import DBusError, Message, MessageFlag, MessageType, NameFlag, RequestNameReply
from dbus_fast.aio import MessageBus

_NAME = "org.freedesktop.Notifications"
_FIELDS = ("app_name", "replaces_id", "app_icon", "summary", "body", "actions", "hints", "expire_timeout")
_RELEASE = Message(
    destination="org.freedesktop.DBus",
    path="/org/freedesktop/DBus",
    interface="org.freedesktop.DBus",
    member="ReleaseName",
    signature="s",
    body=[_NAME],
    flags=MessageFlag.NO_REPLY_EXPECTED,
)


class Server:
    """Answers raw messages, so that it prints exactly what it was sent."""

    def __init__(self, bus: MessageBus, options: argparse.Namespace) -> None:
        self._bus = bus
        self._options = options
        self._last = 0

    def answer(self, call: Message) -> Message | bool:
        if call.message_type is not MessageType.METHOD_CALL or call.interface != _NAME:
            return False
        if call.member == "Notify":
            return self._notify(call)
        if call.member == "GetCapabilities":
            if self._options.leave:
                self._bus.send(_RELEASE)
            capabilities = ["body", "persistence"] + ([] if self._options.plain else ["body-markup"])
            return Message.new_method_return(call, "as", [capabilities])
        if call.member == "GetServerInformation":
            return Message.new_method_return(call, "ssss", ["tests", "fluxbudget", "1", "1.2"])
        return Message.new_method_return(call)  # CloseNotification: there is nothing to close

    def _notify(self, call: Message) -> Message | bool:
        assert call.signature == "susssasa{sv}i"
        if self._options.odd:
            return Message.new_method_return(call, "s", ["one"])
        if self._options.refuse:
            raise DBusError("org.freedesktop.Error.Refused", "no more\nof that\x1b[2J")
        fields: dict[str, Any] = dict(zip(_FIELDS, call.body, strict=True))
        hints = {name: hint.value for name, hint in fields.pop("hints").items()}
        if not fields["replaces_id"]:
            self._last += 1
        number = fields["replaces_id"] or self._last
        print_line(json.dumps({"id": number, **fields, "hints": hints, "urgency": hints.get("urgency")}))
        if self._options.hang:
            self._options.hang -= 1
            return True
        return Message.new_method_return(call, "u", [number])


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--hang", type=int, default=0)
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--odd", action="store_true")
    parser.add_argument("--leave", action="store_true")
    options = parser.parse_args()
    bus = await MessageBus(options.address).connect()
    bus.add_message_handler(Server(bus, options).answer)
    reply = await bus.request_name(_NAME, NameFlag.DO_NOT_QUEUE)
    assert reply is RequestNameReply.PRIMARY_OWNER
    print_line("ready")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
