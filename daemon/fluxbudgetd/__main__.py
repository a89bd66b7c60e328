"""`python -m fluxbudgetd`."""

import sys

from fluxbudgetd.cli import main

sys.exit(main())
