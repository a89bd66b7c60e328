"""The one place with state: usage and ledger in, policy asked, decisions out."""

from fluxbudgetd.engine.engine import Engine, Standing

__all__ = ["Engine", "Standing"]
