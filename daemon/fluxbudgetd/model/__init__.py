"""The daemon's values: frozen structs with no behaviour beyond arithmetic.

Times are integers: microseconds since the Unix epoch, UTC. Tokens are integers >= 0. Import the names from here: the
package re-exports every public name.
"""

from fluxbudgetd.model.beads import *
from fluxbudgetd.model.callers import *
from fluxbudgetd.model.events import *
from fluxbudgetd.model.intercore import *
from fluxbudgetd.model.runs import *
from fluxbudgetd.model.samples import *
from fluxbudgetd.model.sources import *
from fluxbudgetd.model.times import *
from fluxbudgetd.model.transcripts import *
from fluxbudgetd.model.triages import *
from fluxbudgetd.model.usage import *
