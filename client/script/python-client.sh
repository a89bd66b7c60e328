#!/bin/sh
# Start the Python client. This is `fluxbudgetctl-python`, and `fluxbudgetctl` where no C compiler was available.
#
# The scripts that installers generate import `re`, which would double the time of a command that the native client
# hands over.
self=$0
case $self in */*) ;; *) if [ -f "./$self" ]; then self=./$self; else self=$(command -v -- "$self"); fi ;; esac
[ ! -L "$self" ] || self=$(readlink -f -- "$self")
here=${self%/*}
# These can keep Python from starting, or from exiting with the client's exit code.
unset PYTHONHOME PYTHONINSPECT
# Python does not start if stdin is a directory.
[ ! -d /dev/stdin ] || exec </dev/null

if [ -f "$here/../pyvenv.cfg" ]; then
    python=$here/python
    # In a virtual environment the package's path is known, so skip `site`, which takes longer than the answer. An
    # editable install has no package there, so Python starts the usual way.
    case $1 in remaining | env | check | advance | ping | hook | statusline)
        for start in "$here"/../lib/python3*/site-packages/fluxbudgetctl/bare.py; do
            [ ! -x "$python" ] || [ ! -f "$start" ] || exec "$python" -I -S "$start" "$self" "$@"
        done ;;
    esac
else
    # Installers write the interpreter's path into the generated scripts: after `#!`, or, if it is long or has a space,
    # into the second line: '''exec' "/a path/python" "$0" "$@"
    { IFS= read -r first && IFS= read -r second; } 2>/dev/null <"$here/fluxbudgetd"
    case $first in
    '#!/bin/sh') python=${second#"'''exec' "} python=${python%' "$0" "$@"'} ;;
    *) python=${first#'#!'} python=${python%% *} ;;
    esac
    case $python in [\"\']*[\"\']) python=${python#?} python=${python%?} ;; esac
fi

# Report a missing interpreter or package here: the shell would exit with 127, and Python with 1, even for a hook.
if [ -x "$python" ]; then
    exec "$python" -P -c '
import sys
del sys.argv[0]
try:
    from fluxbudgetctl.main import main
except ImportError as exc:
    if sys.argv[1:2] == ["hook"]:
        sys.exit(0)
    print(f"fluxbudgetctl: {exc}\nhint: install fluxbudget again", file=sys.stderr)
    sys.exit(70)
sys.exit(main())' "$self" "$@"
fi
[ "$1" != hook ] || exit 0
echo "fluxbudgetctl: ${python:-the Python in $here/fluxbudgetd} cannot be executed" >&2
echo "hint: install fluxbudget again" >&2
exit 70
