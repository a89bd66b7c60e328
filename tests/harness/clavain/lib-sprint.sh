# A library like Clavain's lib-sprint.sh and the libraries that it uses, with the faults that they have upstream.
# It keeps its data in $CLAVAIN_STATE, and calls `ic` from PATH.

# Wrong keys: what `ic` prints has none of them, so nothing is ever left.
sprint_budget_remaining() {
    local sprint_id="$1" budget spent
    budget="$(_lib_number "$(cat "$CLAVAIN_STATE/budget.json")" token_budget_total)"
    spent="$(_lib_number "$(cat "$CLAVAIN_STATE/budget.json")" tokens_spent_total)"
    echo $((budget > spent ? budget - spent : 0))
}

# Print the number of a key in a JSON object; 0 if it has none.
_lib_number() {
    case "$1" in
        *"\"$2\":"*) set -- "${1#*"\"$2\":"}" && echo "${1%%[,\}]*}" ;;
        *) echo 0 ;;
    esac
}

# What a shell has recorded, another one does not see.
_LIB_SPENT=0
sprint_budget_left_in_this_shell() {
    echo $((LIB_BUDGET - _LIB_SPENT))
}

# A session's sum so far is added again at each phase, and split into 60 % of input and 40 % of output.
sprint_record_phase_tokens() {
    local sprint_id="$1" phase="$2" total
    total="$(cat "$CLAVAIN_STATE/session-total")"
    _LIB_SPENT=$((_LIB_SPENT + total))
    echo "$phase $((total * 60 / 100)) $((total * 40 / 100))" >>"$CLAVAIN_STATE/phase_tokens"
}

intercore_run_budget() {
    ic --json run budget "$1"
}

# Whatever `ic` ends with, other than 0, is "exceeded".
sprint_advance() {
    local sprint_id="$1" current_phase="$2" artifact="${3:-}"
    if [ -z "${CLAVAIN_SKIP_BUDGET:-}" ] && ! intercore_run_budget "$LIB_RUN" >/dev/null 2>&1; then
        echo "budget_exceeded|$current_phase|?/? billing tokens"
        return 1
    fi
    printf 'Phase: %s -> next [%s]\n' "$current_phase" "$artifact"
    echo "advancing $sprint_id" >&2
    return "${LIB_ADVANCE_CODE:-0}"
}

sprint_read_state() {
    cat "$CLAVAIN_STATE/state.json"
}
