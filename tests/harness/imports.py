"""The modules that a hot command must not import."""

#: Each costs milliseconds, on every tool call of every session.
HEAVY = {
    "anyio",
    "argparse",
    "asyncio",
    "fluxbudgetd.wire.messages",
    "json",
    "msgspec",
    "re",
    "rich",
    "socket",
    "subprocess",
}
