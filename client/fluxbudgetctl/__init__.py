"""The fluxbudget client: asks the daemon over a Unix socket and prints the answer for shells and people.

The hot path, which shell hooks call, is `main`, `bare`, `hot`, `hook`, `statusline`, `state_file` and what they import;
it imports as little as possible. Everything else people type starts in `cli`: `commands` has one module per command,
`screens` prints answers, `service` manages the systemd service, `top` is the live view.

From the daemon the client imports only `fluxbudgetd.wire`.
"""
