"""Who spent what: accounts in memory, batched reading, tallying, freshness, following."""

from fluxbudgetd.totals.account import Standing
from fluxbudgetd.totals.totals import Reports, Totals

__all__ = ["Reports", "Standing", "Totals"]
