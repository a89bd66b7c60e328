"""A calibration, as tables."""

from fluxbudgetctl.screens.output import print_columns, tokens
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import one_line


def print_calibration(calibration: messages.Calibration) -> None:
    """Print the costs of phases and agents, and the slicing multiplier."""
    for title, lines in (("PHASE", calibration.phases), ("AGENT", calibration.agents)):
        rows = [
            (
                one_line(name) or "-",
                str(cost.sample_size),
                *(tokens(count) for count in (cost.billing.mean, cost.billing.p50, cost.billing.p90, cost.total.mean)),
            )
            for name, cost in lines.items()
        ]
        if rows:
            print_columns((title, "SAMPLES", "MEAN (BILLING)", "P50", "P90", "MEAN (TOTAL)"), rows)
        else:
            print(f"{title.lower()}s: nothing measured yet")
        print()
    slicing = calibration.slicing
    if slicing.multiplier is not None:
        verdict = f"proposed: {slicing.multiplier}"
    elif slicing.median is None:
        verdict = "nothing measured yet"
    else:
        verdict = "kept"
    median = "" if slicing.median is None else f", median {slicing.median} of {slicing.sliced_runs} sliced runs"
    print(f"slicing multiplier: {slicing.was}{median}; {verdict}")
