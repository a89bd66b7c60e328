# shellcheck shell=bash
# Clavain's budget functions, with fluxbudget's numbers. For bash 4 and later, and zsh.
#
# They replace functions of Clavain's lib-sprint.sh and lib-intercore.sh and of interstat's library, and the verbs of
# `clavain-cli`, which scripts call as a program. Without the daemon they use its state files; without those they print
# 0. Rules:
#
# * stdout has only the answer. stderr is silent, except with $FLUXBUDGET_DEBUG, or where a function's contract says
#   otherwise.
# * Everything works under `set -euo pipefail`: each command that may fail is in a condition.
# * Foreign values (beads, agents, models) are passed as arguments `--flag=value`, never as code.
# * No arrays, no unquoted expansions, and every local is initialized: bash and zsh differ in everything else.

# An alias of this name would hide the function, or break its definition.
unalias clavain-cli >/dev/null 2>&1 || true
# zsh does not load `$functions` by itself if it emulates sh.
if [ -n "${ZSH_VERSION:-}" ]; then zmodload zsh/parameter >/dev/null 2>&1 || true; fi

# --- talking to the daemon

# $FLUXBUDGET_TIMEOUT is in seconds. It is reached only if the machine is overloaded.
_fluxbudget() {
    local seconds="${FLUXBUDGET_TIMEOUT:-2}"
    case "$seconds" in # with an invalid value there would be no answer, and so no limit
        *[!0-9.]* | *.*.* | ?????*) seconds=2 ;;
        *[1-9]*) ;;
        *) seconds=2 ;;
    esac
    if [ -n "${FLUXBUDGET_DEBUG:-}" ]; then
        command fluxbudgetctl "$@" "--timeout=$seconds"
    else
        command fluxbudgetctl "$@" "--timeout=$seconds" 2>/dev/null
    fi
}

# Print a run's numbers as KEY=VALUE lines; nothing if they are not known. $1: --scope=BEAD or --run=ID
_fluxbudget_numbers() {
    local numbers=""
    case "$1" in
        *=?*) numbers="$(_fluxbudget numbers "$1")" || numbers="" ;;
    esac
    printf '%s\n' "$numbers"
}

# Print the value of a key ($2) in KEY=VALUE lines ($1); nothing if there is no such key.
_fluxbudget_value() {
    local newline="
" text=""
    text="$newline$1$newline"
    case "$text" in
        *"$newline$2="*)
            text="${text#*"$newline$2="}"
            printf '%s\n' "${text%%"$newline"*}"
            ;;
    esac
}

# Print a whole number, and 0 for anything else.
_fluxbudget_integer() {
    case "${1:-}" in
        "" | *[!0-9]*) printf '0\n' ;;
        *) printf '%s\n' "$1" ;;
    esac
}

# Print "ALLOCATED SPENT LEFT DEPLETED" for a bead's stage. A stage without a share has the whole budget.
_fluxbudget_stage() {
    local numbers="" stage="${2:-}" allocated="" spent="" left="" remaining="" depleted=0
    numbers="$(_fluxbudget_numbers "--scope=${1:-}")"
    case "$stage" in
        plan-review) stage="design" ;;
        quality-gates) stage="ship" ;;
    esac
    case "$stage" in
        discover | design | build | ship | reflect)
            allocated="$(_fluxbudget_value "$numbers" "${stage}_budget")"
            spent="$(_fluxbudget_value "$numbers" "${stage}_spent")"
            ;;
    esac
    remaining="$(_fluxbudget_value "$numbers" remaining)"
    if [ -z "$remaining" ]; then # no budget, or no answer
        [ -n "$spent" ] || spent="$(_fluxbudget_value "$numbers" spent)"
        printf '0 %s 0 0\n' "$(_fluxbudget_integer "$spent")"
        return 0
    fi
    if [ -n "$allocated" ]; then
        left=$((allocated - spent))
        # Other stages may have used this stage's share.
        if [ "$left" -gt "$remaining" ]; then left="$remaining"; fi
    else
        allocated="$(_fluxbudget_value "$numbers" budget)"
        spent="$(_fluxbudget_value "$numbers" spent)"
        left="$remaining"
    fi
    if [ "$left" -le 0 ]; then left=1 depleted=1; fi # callers take 0 for "no limit"
    printf '%s %s %s %s\n' "$allocated" "$spent" "$left" "$depleted"
}

# --- a sprint's budget

sprint_budget_remaining() {
    local left="" code=0
    if [ -n "${1:-}" ]; then
        left="$(_fluxbudget remaining "--scope=$1")" || code=$?
    fi
    if [ "$code" -ne 0 ]; then
        left=0
    elif [ "$left" = 0 ]; then
        left=1 # callers take 0 for "no limit"
    fi
    _fluxbudget_integer "$left"
}

sprint_budget_total() {
    local numbers=""
    numbers="$(_fluxbudget_numbers "--scope=${1:-}")"
    _fluxbudget_integer "$(_fluxbudget_value "$numbers" budget)"
}

sprint_budget_stage() {
    local numbers=""
    numbers="$(_fluxbudget_stage "${1:-}" "${2:-}")"
    printf '%s\n' "${numbers%% *}"
}

sprint_stage_tokens_spent() {
    local numbers=""
    numbers="$(_fluxbudget_stage "${1:-}" "${2:-}")"
    numbers="${numbers#* }"
    printf '%s\n' "${numbers%% *}"
}

sprint_budget_stage_remaining() {
    local numbers=""
    numbers="$(_fluxbudget_stage "${1:-}" "${2:-}")"
    numbers="${numbers#* * }"
    printf '%s\n' "${numbers%% *}"
}

sprint_budget_stage_check() {
    local numbers=""
    numbers="$(_fluxbudget_stage "${1:-}" "${2:-}")"
    if [ "${numbers##* }" = 1 ]; then
        printf 'budget_exceeded|%s|stage budget depleted\n' "${2:-}" >&2
        return 1
    fi
}

# Tokens are measured, so there is nothing to record. This writes them back now.
sprint_record_phase_tokens() {
    if [ -n "${1:-}" ]; then
        _fluxbudget sync "--scope=$1" >/dev/null || true
    fi
}

# --- the sprint itself

# Save a function of the library before ours replaces it. If this file is loaded again, our own function is not saved.
_fluxbudget_keep() {
    local text=""
    if [ -n "${ZSH_VERSION:-}" ]; then
        text="${functions[$1]:-}"
    else
        text="$(declare -f "$1")" || text=""
    fi
    case "$text" in
        "" | *_fluxbudget*) return 0 ;;
    esac
    if [ -n "${ZSH_VERSION:-}" ]; then
        functions[_fluxbudget_upstream_$1]="$text"
    else
        eval "_fluxbudget_upstream_$text" # the text begins with the function's name
    fi
}

_fluxbudget_has_function() {
    typeset -f "$1" >/dev/null 2>&1
}

# Functions do not count, because `clavain-cli` is also one of our functions.
_fluxbudget_has_program() {
    if [ -n "${ZSH_VERSION:-}" ]; then
        whence -p "$1" >/dev/null 2>&1
    else
        type -P "$1" >/dev/null 2>&1
    fi
}

_fluxbudget_keep sprint_advance
_fluxbudget_keep sprint_read_state

sprint_advance() {
    _fluxbudget_advance library "$@"
}

# $1: what moves the sprint, `library` or `program`; then BEAD PHASE [ARTIFACT]
_fluxbudget_advance() {
    local by="$1" line="" code=0
    shift
    if [ -n "${1:-}" ]; then
        line="$(_fluxbudget check "--scope=$1")" || code=$?
    fi
    # Only this is a refusal. After any other problem, the sprint goes on.
    if [ "$code" -eq 1 ] && [ -n "$line" ]; then
        printf '%s\n' "$line"
        return 1
    fi
    if [ "$by" = library ] && _fluxbudget_has_function _fluxbudget_upstream_sprint_advance; then
        _fluxbudget_upstream_sprint_advance "$@"
    elif _fluxbudget_has_program clavain-cli; then
        command clavain-cli sprint-advance "$@"
    else
        code=0
        line="$(_fluxbudget advance "--scope=${1:-}" "--from=${2:-}")" || code=$?
        if [ "$code" -ne 0 ]; then
            [ -z "$line" ] || printf '%s\n' "$line"
            return 1
        fi
    fi
}

sprint_read_state() {
    _fluxbudget_read_state library "$@"
}

# $1: where the state comes from, `library` or `program`; then BEAD
_fluxbudget_read_state() {
    local by="$1" state="{}" code=0 numbers="" budget="" spent=""
    shift
    if [ "$by" = library ] && _fluxbudget_has_function _fluxbudget_upstream_sprint_read_state; then
        state="$(_fluxbudget_upstream_sprint_read_state "$@")" || code=$?
    elif _fluxbudget_has_program clavain-cli; then
        state="$(command clavain-cli sprint-read-state "$@")" || code=$?
    fi
    numbers="$(_fluxbudget_numbers "--scope=${1:-}")"
    spent="$(_fluxbudget_value "$numbers" spent)"
    if [ -n "$spent" ]; then
        budget="$(_fluxbudget_value "$numbers" budget)"
        state="$(_fluxbudget_replace "$state" token_budget "$(_fluxbudget_integer "$budget")")"
        state="$(_fluxbudget_replace "$state" tokens_spent "$(_fluxbudget_integer "$spent")")"
    fi
    printf '%s\n' "$state"
    return "$code"
}

# Print a JSON object ($1) with a number ($3) as the value of a key ($2). In JSON, "KEY": can only be a key, because
# quotes inside a string are escaped. If nested objects have the same key, the outer object's comes last.
_fluxbudget_replace() {
    local before="" rest="" separator=","
    case "$1" in
        *"\"$2\":"*"}"*)
            before="${1%"\"$2\":"*}\"$2\":"
            rest="${1#"$before"}"
            case "$rest" in
                " "*) before="$before " ;;
            esac
            # The old value is a number, null or a plain string.
            separator="${rest%%[,\}]*}"
            printf '%s\n' "$before$3${rest#"$separator"}"
            ;;
        "{"*"}")
            before="${1%"}"}"
            case "$before" in
                *[!"{ "]*) ;;
                *) separator="" ;;
            esac
            printf '%s\n' "$before$separator\"$2\":$3}"
            ;;
        *) printf '%s\n' "$1" ;;
    esac
}

# --- defaults and estimates; without the daemon, Clavain's own

_sprint_default_budget() {
    local complexity="${1:-3}" budget="" code=0
    case "$complexity" in
        *[!0-9]*) complexity=5 ;;
    esac
    budget="$(_fluxbudget defaults "--complexity=$complexity")" || code=$?
    if [ "$code" -ne 0 ] || [ -z "$budget" ]; then
        case "$complexity" in
            1) budget=50000 ;;
            2) budget=100000 ;;
            3) budget=250000 ;;
            4) budget=500000 ;;
            *) budget=1000000 ;;
        esac
    fi
    printf '%s\n' "$budget"
}

_sprint_phase_cost_estimate() {
    local tokens="" code=0
    if [ -n "${1:-}" ]; then
        tokens="$(_fluxbudget defaults "--phase=$1")" || code=$?
    fi
    if [ "$code" -ne 0 ] || [ -z "$tokens" ]; then
        case "${1:-}" in
            brainstorm) tokens=30000 ;;
            brainstorm-reviewed) tokens=15000 ;;
            strategized) tokens=25000 ;;
            planned) tokens=35000 ;;
            plan-reviewed) tokens=50000 ;;
            executing) tokens=150000 ;;
            shipping) tokens=100000 ;;
            reflect) tokens=10000 ;;
            done) tokens=5000 ;;
            *) tokens=30000 ;;
        esac
    fi
    printf '%s\n' "$tokens"
}

_sprint_phase_to_stage() {
    case "${1:-}" in
        brainstorm | goal-formed) printf 'discover\n' ;;
        brainstorm-reviewed | strategized | strategy-reviewed | planned | plan-reviewed) printf 'design\n' ;;
        executing) printf 'build\n' ;;
        review | polish | shipping) printf 'ship\n' ;;
        reflect) printf 'reflect\n' ;;
        done) printf 'done\n' ;;
        *) printf 'unknown\n' ;; # as the library prints
    esac
}

# --- intercore's runs

# PROJECT GOAL [PHASES_JSON] [SCOPE] [COMPLEXITY=3] [BUDGET]
intercore_run_create() {
    local project="${1:-}" goal="${2:-}" phases="${3:-}" scope="${4:-}" complexity="${5:-3}" budget="" run="" code=0
    budget="$(_fluxbudget_integer "${6:-}")"
    [ -n "$project" ] || project="."
    set -- "--goal=$goal" "--complexity=$complexity" --budget-warn-pct=80
    [ -z "$phases" ] || set -- "$@" "--phases=$phases"
    [ -z "$scope" ] || set -- "$@" "--scope-id=$scope"
    [ "$budget" = 0 ] || set -- "$@" "--token-budget=$budget"
    run="$(_fluxbudget_create "$project" "$@")" || code=$?
    case "$run" in
        "" | *[!A-Za-z0-9._:-]*) return 1 ;;
    esac
    [ "$code" -eq 0 ] || return 1
    printf '%s\n' "$run"
}

# `ic` looks for the project's database in its working directory and above.
_fluxbudget_create() {
    # (With CDPATH, `cd` could go elsewhere, and would print where.)
    CDPATH="" cd -- "$1" >/dev/null 2>&1 || return 1
    shift
    set -- "--project=$PWD" "$@"
    if [ -n "${FLUXBUDGET_DEBUG:-}" ]; then
        command "${INTERCORE_BIN:-ic}" run create "$@"
    else
        command "${INTERCORE_BIN:-ic}" run create "$@" 2>/dev/null
    fi
}

# Exit 1 as long as the budget is exceeded; an unknown run, or an error, is not exceeded.
intercore_run_budget() {
    local run="${1:-}" numbers="" budget="" used=0 warn_pct=80 pct=0 warning=false exceeded=false code=0
    numbers="$(_fluxbudget_numbers "--run=$run")"
    case "$(_fluxbudget_value "$numbers" state)" in
        warning) warning=true ;;
        exceeded)
            warning=true
            _fluxbudget check "--run=$run" >/dev/null || code=$?
            if [ "$code" -eq 1 ]; then exceeded=true; fi
            ;;
    esac
    budget="$(_fluxbudget_value "$numbers" budget)"
    used="$(_fluxbudget_integer "$(_fluxbudget_value "$numbers" spent)")"
    pct="$(_fluxbudget_value "$numbers" pct)"
    warn_pct="$(_fluxbudget_value "$numbers" warn_pct)"
    # Any other text is no run's id, and would have to be escaped.
    case "$run" in
        "" | -* | *[!A-Za-z0-9._:-]*) ;;
        *)
            printf '{"run_id":"%s","budget":%s,"used":%s,' "$run" "${budget:-null}" "$used"
            printf '"warn_pct":%s,"usage_pct":%s,' "${warn_pct:-80}" "${pct:-0}"
            printf '"warning":%s,"exceeded":%s}\n' "$warning" "$exceeded"
            ;;
    esac
    [ "$exceeded" = false ]
}

intercore_run_tokens() {
    local run="${1:-}" numbers="" input=0 output=0 cache=0
    numbers="$(_fluxbudget_numbers "--run=$run")"
    input="$(_fluxbudget_integer "$(_fluxbudget_value "$numbers" input)")"
    output="$(_fluxbudget_integer "$(_fluxbudget_value "$numbers" output)")"
    cache="$(_fluxbudget_integer "$(_fluxbudget_value "$numbers" cache_read)")"
    case "$run" in
        "" | -* | *[!A-Za-z0-9._:-]*) ;;
        *)
            printf '{"run_id":"%s","input_tokens":%s,"output_tokens":%s,' "$run" "$input" "$output"
            printf '"cache_hits":%s,"total_tokens":%s}\n' "$cache" "$((input + output))" # as in `ic run tokens`
            ;;
    esac
}

# --- agents' tokens

# SESSION AGENT
query_agent_tokens() {
    if [ -n "${1:-}" ] && [ -n "${2:-}" ]; then
        _fluxbudget tokens "--session=$1" "--agent=$2" || true
    fi
}

# AGENT [MODEL]
query_avg_tokens() {
    if [ -n "${2:-}" ]; then
        _fluxbudget tokens "--agent=${1:-}" "--model=$2" || true
    elif [ -n "${1:-}" ]; then
        _fluxbudget tokens "--agent=$1" || true
    fi
}

# --- clavain-cli

_fluxbudget_clavain_cli() {
    local verb="${1:-}"
    if [ "$#" -gt 0 ]; then shift; fi
    case "$verb" in
        sprint-budget-remaining) sprint_budget_remaining "$@" ;;
        budget-total | sprint-budget-total) sprint_budget_total "$@" ;;
        sprint-budget-stage) sprint_budget_stage "$@" ;;
        sprint-stage-tokens-spent) sprint_stage_tokens_spent "$@" ;;
        sprint-budget-stage-remaining) sprint_budget_stage_remaining "$@" ;;
        sprint-budget-stage-check) sprint_budget_stage_check "$@" ;;
        sprint-record-phase-tokens) sprint_record_phase_tokens "$@" ;;
        sprint-advance) _fluxbudget_advance program "$@" ;;
        sprint-read-state) _fluxbudget_read_state program "$@" ;;
        "") command clavain-cli ;;
        *) command clavain-cli "$verb" "$@" ;;
    esac
}

# bash in POSIX mode (on some systems, that is sh) exits if a function with a hyphen in its name is defined. It can call
# such a function.
case ":${SHELLOPTS:-}:" in
    *:posix:*)
        set +o posix
        eval 'clavain-cli() { _fluxbudget_clavain_cli "$@"; }'
        set -o posix
        ;;
    *) eval 'clavain-cli() { _fluxbudget_clavain_cli "$@"; }' ;;
esac
