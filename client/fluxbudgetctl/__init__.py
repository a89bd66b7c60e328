"""The fluxbudget client: asks the daemon over a Unix socket and prints the answer for shells and people.

The verbs that shell hooks call take the hot path: `main`, `bare`, `pipe` and what these import, which is as little as
possible. Without an answer, `commands.piped` and `fallback` take over: state files, defaults, an older daemon. All else
that people type starts in `cli`: `commands` has one module per command, `screens` prints answers, `service` manages the
systemd service, `top` is the live view.

From the daemon the client imports only `fluxbudgetd.wire`.
"""
