"""The entry point for the piped verbs where Python's packages are known: `python -I -S bare.py PROGRAM WORD…`.

Without `site`, Python starts faster but finds no packages. These verbs only need packages that are beside this one.
PROGRAM is the path of the script that was called. Python compiles a script each time, so this one is short.
"""

import gc
import posix
import sys

if __name__ == "__main__":
    gc.disable()  # this process ends before collecting anything would pay
    sys.path.append(__file__.rpartition("/fluxbudgetctl/")[0])  # `os.path` takes longer to import than all the rest
    del sys.argv[0]
    from fluxbudgetctl.main import main  # only now it can be found

    # All output is flushed, so skip the interpreter's shutdown, which would only take time.
    posix._exit(main())  # noqa: SLF001  public, despite its name
