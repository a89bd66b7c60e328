"""What goes over the socket: frames, messages, names of files, codes.

Shared by the daemon and the client. Nothing here does I/O, and nothing is imported here, so that the client's hot path
pays only for the module that it names: `framing`, `packed`, `paths`, `state_names`, `codes` and `text` need no
third-party package; `messages` needs msgspec.
"""
