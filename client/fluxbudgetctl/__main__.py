"""`python -m fluxbudgetctl`."""

import sys

from fluxbudgetctl.main import main

sys.exit(main())
