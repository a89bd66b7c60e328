"""What the labels of a bead say about its run."""

import msgspec


class Bead(msgspec.Struct, frozen=True, kw_only=True):
    """A bead's labels that concern its run. Each is None if there is no valid label.

    `token_budget` is 0 for an unlimited budget. `run` is the id of intercore's run for this bead. `faults` say which
    labels were ignored or replaced because of their values.
    """

    id: str
    token_budget: int | None = None
    complexity: int | None = None
    phase: str | None = None
    run: str | None = None
    faults: tuple[str, ...] = ()
