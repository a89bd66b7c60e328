"""The fluxbudget daemon.

Importing the package costs nothing: the client imports `fluxbudgetd.wire` on every call of every hook.
"""

__version__ = "0.2.0"
