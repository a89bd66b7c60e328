"""A calibration, as tables."""

from collections.abc import Mapping

from fluxbudgetctl.screens.output import print_columns, tokens
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import one_line


def print_calibration(calibration: messages.Calibration) -> None:
    """Print the costs of phases and agents, how reviews went, and the slicing multiplier."""
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
    _print_reviews(calibration.reviews)
    print()
    slicing = calibration.slicing
    if slicing.multiplier is not None:
        verdict = f"proposed: {slicing.multiplier}"
    elif slicing.median is None:
        verdict = "nothing measured yet"
    else:
        verdict = "kept"
    median = "" if slicing.median is None else f", median {slicing.median} of {slicing.sliced_reviews} sliced reviews"
    print(f"slicing multiplier: {slicing.was}{median}; {verdict}")


def _print_reviews(reviews: Mapping[str, messages.ReviewCalibration]) -> None:
    if not reviews:
        print("reviews: nothing measured yet")
        return
    print_columns(
        ("REVIEWS OF", "COUNT", "MEDIAN (BILLING)", "OF BUDGET", "DEFERRED", "RAN ANYWAY", "OVERRIDDEN"),
        [
            (
                one_line(input_type),
                str(line.reviews),
                "-" if line.median_billing is None else tokens(line.median_billing),
                "-" if line.median_pct is None else f"{line.median_pct} %",
                str(line.deferred),
                str(line.ran_anyway),
                str(line.overridden),
            )
            for input_type, line in reviews.items()
        ],
    )
