#!/bin/sh
# fluxbudgetctl where no C compiler was available at installation: every command is the Python client's, which is in this
# file's directory (or in that of the file that this one is a link to).
self=$0
case $self in */*) ;; *) if [ -f "./$self" ]; then self=./$self; else self=$(command -v -- "$self"); fi ;; esac
[ ! -L "$self" ] || self=$(readlink -f -- "$self")
here=${self%/*}
client=$here/fluxbudgetctl-python
# With these set, Python may fail to start, or keep running after the script, and exit with a code that means something
# else here.
unset PYTHONHOME PYTHONINSPECT
# For a missing interpreter the shell would exit with 127, even for a hook.
can_run() { [ -x "$client" ] && IFS= read -r first <"$client" && first=${first#??} && [ -x "${first%% *}" ]; }
if ! can_run; then
    [ "$1" != hook ] || exit 0
    echo "fluxbudgetctl: $client cannot be executed" >&2
    echo "hint: install fluxbudget again" >&2
    exit 70
fi
# In a virtual environment the package's path is known, so skip Python's package search, which takes longer than the
# answer. An editable install has no package there, and starts Python the usual way.
case $1 in remaining | env | check | ping | hook | statusline)
    if [ -f "$here/../pyvenv.cfg" ] && [ -x "$here/python" ]; then
        for start in "$here"/../lib/python3*/site-packages/fluxbudgetctl/bare.py; do
            [ ! -f "$start" ] || exec "$here/python" -I -S "$start" "$client" "$@"
        done
    fi ;;
esac
exec "$client" "$@"
