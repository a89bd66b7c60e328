"""Show a bubble through the notification server of a session bus.

Importing this module imports dbus_fast, which takes a tenth of a second: only `desktop` does, in a worker thread.
"""

import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import anyio
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, DBusFastError, InvalidAddressError

from fluxbudgetd.config.shown import shortened, shown_file
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.bubble import URGENCIES, Bubble, body_of, title_of
from fluxbudgetd.notify.shown_bubbles import NotificationServer, ShownBubbles
from fluxbudgetd.wire.text import one_line

T = TypeVar("T")

_BUS = "org.freedesktop.DBus"
_SERVER = "org.freedesktop.Notifications"
_NO_SERVER = (f"{_BUS}.Error.ServiceUnknown", f"{_BUS}.Error.NameHasNoOwner")
# What dbus_fast raises for bytes that are not D-Bus, in addition to its own errors.
_FOREIGN = (DBusFastError, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
_CLOSING_SECONDS = 1.0
_MOST_CHARACTERS = 200

# dbus_fast also logs what it raises; silence it, so that no plain text mixes with our log.
logging.getLogger("dbus_fast").addHandler(logging.NullHandler())


async def show(address: str, bubble: Bubble, shown: ShownBubbles, seconds: float) -> None:
    """Show a bubble, replacing the previous one with its key; raises `ChannelError`, after at most `seconds`."""
    waiting_for = "the session bus"
    try:
        with anyio.fail_after(seconds):
            async with _connected(address) as bus:
                waiting_for = "the notification server"
                await _notify(bus, bubble, shown)
    except TimeoutError as exc:
        raise ChannelError(
            f"{waiting_for} did not answer in time", f"check that it responds; the bus is {_shown(address)}"
        ) from exc
    except InvalidAddressError as exc:
        message = f"the session bus's address is not a valid D-Bus address: {_shown_error(exc)}"
        raise ChannelError(message, "check $DBUS_SESSION_BUS_ADDRESS") from exc
    except AuthError as exc:
        message = f"the session bus refused the connection: {_shown_error(exc)}"
        raise ChannelError(message, "check that the bus belongs to the daemon's user") from exc
    except OSError as exc:
        message = f"the session bus cannot be reached: {_shown_error(exc)}"
        raise ChannelError(message, f"check that it is running; its address is {_shown(address)}") from exc
    except EOFError as exc:
        raise ChannelError("the session bus closed the connection", "it may have been stopped") from exc
    except _FOREIGN as exc:
        message = f"the session bus sent something that is not D-Bus: {_shown_error(exc)}"
        raise ChannelError(message, "check $DBUS_SESSION_BUS_ADDRESS") from exc


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[MessageBus]:
    bus = MessageBus(address)
    await bus.connect()  # closes what it opened when it fails or is cancelled
    try:
        yield bus
    finally:
        bus.disconnect()
        with anyio.move_on_after(_CLOSING_SECONDS, shield=True), suppress(*_FOREIGN):
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


async def _notify(bus: MessageBus, bubble: Bubble, shown: ShownBubbles) -> None:
    bus_id = await _call(bus, Message(destination=_BUS, path="/org/freedesktop/DBus", interface=_BUS, member="GetId"))
    capabilities = await _call(bus, _to_server(_SERVER, "GetCapabilities"))
    server = NotificationServer(_first(bus_id, str), capabilities.sender or "")
    number, icon = URGENCIES[bubble.urgency]
    body: list[object] = [
        "fluxbudget",
        shown.id_of(bubble.key, server),
        icon,
        title_of(bubble),
        body_of(bubble, markup="body-markup" in _first(capabilities, list)),
        [],
        # No desktop-entry hint: with one, GNOME removes the bubble when our connection closes.
        {"urgency": Variant("y", number)},
        -1,
    ]
    # To the same server, not to the name's current owner: another server does not know the id.
    answer = await _call(bus, _to_server(server.name, "Notify", "susssasa{sv}i", body))
    shown.remember(bubble.key, server, _first(answer, int))


def _to_server(name: str, member: str, signature: str = "", body: list[object] | None = None) -> Message:
    return Message(
        destination=name,
        path="/org/freedesktop/Notifications",
        interface=_SERVER,
        member=member,
        signature=signature,
        body=body or [],
    )


async def _call(bus: MessageBus, request: Message) -> Message:
    answer = await bus.call(request)
    if answer.message_type is not MessageType.ERROR:
        return answer
    name = answer.error_name or ""
    if request.destination == _SERVER and name in _NO_SERVER:
        raise ChannelError(
            "no notification server is on the session bus",
            "desktops have one; elsewhere start one, such as dunst or mako",
            resting=True,
        )
    error = shortened(one_line(f"{name}: {answer.body[0]}" if answer.body else name), _MOST_CHARACTERS)
    peer = "session bus" if request.destination == _BUS else "notification server"
    raise ChannelError(f"the {peer} refused {request.member}: {error}", "its own log may say more")


def _first(answer: Message, kind: type[T]) -> T:
    value = answer.body[0] if answer.body else None
    if not isinstance(value, kind):
        message = f"the notification server gave an answer of the wrong type: {one_line(answer.signature)}"
        raise ChannelError(message, "another notification server may be needed")
    return value


def _shown(address: str) -> str:
    return shortened(shown_file(address), _MOST_CHARACTERS)


def _shown_error(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shortened(one_line(text), _MOST_CHARACTERS)
