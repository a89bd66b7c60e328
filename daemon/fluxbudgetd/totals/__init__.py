"""Who spent what: accounts in memory, batched reading, tallying, freshness, following."""

from fluxbudgetd.totals.totals import Standing, Totals

__all__ = ["Standing", "Totals"]
