"""Calibration: what phases and agents have cost."""

import os

from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.text import fold


async def calibrate(context: Context, request: wire.Calibrate) -> wire.CalibrateAnswer:
    """Return what phases and agents have actually cost."""
    service, deadline = context.service, deadline_of(request)
    standings = await service.totals.standings(list(service.accounts.runs.values()), deadline)
    calibration, stale_why = await service.calibrations.calibrate(deadline)
    stale_why = next((standing.stale_why for standing in standings if standing.stale_why is not None), stale_why)
    return wire.CalibrateAnswer(
        calibration=calibration, path=fold(os.fsencode(service.settings.calibration_path)), stale_why=stale_why
    )
