"""Permissions bind root, too, once it has given up the capabilities to overrule them."""

import os

#: A command prefix under which file permissions hold even for root.
OBEDIENT: tuple[str, ...] = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    if os.geteuid() == 0
    else ()
)
