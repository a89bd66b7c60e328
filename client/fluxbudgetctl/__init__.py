"""The fluxbudget client: asks the daemon over a Unix socket and prints for shells and people.

Of the daemon it imports only `fluxbudgetd.wire` (and the version number).
"""
