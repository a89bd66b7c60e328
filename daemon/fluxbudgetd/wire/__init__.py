"""The protocol: frames, messages, codes, and the names of the socket and the state files.

Shared by the daemon and the client. Nothing here does I/O. Nothing is imported here either, so that the client's hot
path only loads the modules that it uses: `messages` needs msgspec, the others need no third-party package.
"""
