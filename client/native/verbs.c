/* `remaining`, `env`, `check`, `ping`: one request, one answer, one line. */
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>

#include "account.h"
#include "connection.h"
#include "output.h"

/* A field that an answer must have, with the kinds that its value may have. */
struct wanted {
    const char *name;
    unsigned kinds;
};

static const struct wanted spend_fields[SPEND_FIELDS] = {
    [BUDGET] = {"budget", INTEGER | NIL},
    [SPENT] = {"spent", INTEGER},
    [MEASURED] = {"measured", INTEGER | NIL},
    [PROVISIONAL] = {"provisional", INTEGER | NIL},
    [RESERVED] = {"reserved", INTEGER},
    [REMAINING] = {"remaining", INTEGER | NIL},
    [PCT] = {"pct", FLOAT | INTEGER | NIL},
    [STATE] = {"state", TEXT},
    [STALE] = {"stale", BOOLEAN},
    [STALE_WHY] = {"stale_why", TEXT | NIL},
};

static const struct wanted run_fields[] = {{"run", TEXT}, {"phase", TEXT}};

enum { RUN, PHASE, ALLOWED, REFUSAL, OVERRIDDEN, NOTE, CHECK_FIELDS };
static const struct wanted check_fields[CHECK_FIELDS] = {
    {"run", TEXT}, {"phase", TEXT}, {"allowed", BOOLEAN}, {"refusal", TEXT | NIL}, {"overridden", TEXT | NIL},
    {"note", TEXT},
};

enum { DAEMON_VERSION, PROTOCOL, PID, STARTED_AT, PING_FIELDS };
static const struct wanted ping_fields[PING_FIELDS] = {
    {"version", TEXT}, {"protocol", INTEGER}, {"pid", INTEGER}, {"started_at", TEXT},
};

static bool take(const struct value *map, const struct wanted *wanted, size_t count, struct value *found)
{
    for (size_t i = 0; i < count; i++) {
        found[i] = field(map, wanted[i].name);
        if ((found[i].kind & wanted[i].kinds) == 0)
            return false;
    }
    return true;
}

static bool take_spend(const struct value *answer, struct value *spend, struct failure *failure)
{
    struct value map = field(answer, "spend");
    return take(&map, spend_fields, SPEND_FIELDS, spend) || not_understood(failure, "its spend is incomplete");
}

static void print(struct value value)
{
    if (value.kind == INTEGER)
        put_integer(&out, value.negative, value.magnitude);
    else if (value.kind == TEXT)
        put(&out, value.text);
    else
        put_string(&out, "None");
}

static void json_name(const char *name)
{
    put_string(&out, out.used == 0 ? "{\"" : ", \"");
    put_string(&out, name);
    put_string(&out, "\": ");
}

static void json_value(struct value value)
{
    if (value.kind == INTEGER) {
        put_integer(&out, value.negative, value.magnitude);
    } else if (value.kind == FLOAT) {
        put_float(&out, value.number);
    } else if (value.kind == TEXT) {
        put_string(&out, "\"");
        put_json(&out, value.text);
        put_string(&out, "\"");
    } else {
        put_string(&out, value.kind == NIL ? "null" : value.truth ? "true" : "false");
    }
}

static void json_fields(const struct wanted *wanted, const struct value *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_name(wanted[i].name);
        json_value(values[i]);
    }
}

/* Print the JSON for an answer without numbers: no run, or no answer from the daemon. */
static void json_without_numbers(uint64_t remaining, const char *state, bool stale)
{
    static const char *const none[] = {"run",         "phase",    "budget", "spent",    "measured",
                                       "provisional", "reserved", "pct",    "stale_why"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        json_fields(&(struct wanted){none[i], NIL}, &(struct value){.kind = NIL}, 1);
    json_fields(&spend_fields[REMAINING], &(struct value){.kind = INTEGER, .magnitude = remaining}, 1);
    json_fields(&spend_fields[STATE], &(struct value){.kind = TEXT, .text = text(state)}, 1);
    json_fields(&spend_fields[STALE], &(struct value){.kind = BOOLEAN, .truth = stale}, 1);
    put_string(&out, "}\n");
}

static void report_value(const char *start, struct value what)
{
    begin_line(start);
    put_one_line(&err, what.kind == TEXT ? what.text : text("None"));
    end_line();
}

static void report_stale(const struct value *spend)
{
    if (spend[STALE].truth)
        report_value("fluxbudgetctl: last known numbers: ", spend[STALE_WHY]);
}

/* Get the answer to `remaining`, from the state file if the socket cannot be reached. */
static bool ask_remaining(const struct options *options, const char *path, struct account *account,
                         struct failure *failure)
{
    static struct state state;
    struct value answer;
    if (!ask(&(struct request){.path = path, .op = "remaining", .options = options}, options->seconds, &answer,
             failure)) {
        if (!failure->no_socket || !find_state(options, path, (struct text){NULL, 0}, &state, failure))
            return false;
        *account = state.account;
        return true;
    }
    struct value run[2];
    if (!take_spend(&answer, account->spend, failure))
        return false;
    if (!take(&answer, run_fields, 2, run))
        return not_understood(failure, "it is incomplete");
    account->run = run[0];
    account->phase = run[1];
    return true;
}

/* Report on stderr that a printed answer is stale or that the run has no budget; return the exit code. */
static int finish(const struct account *account, struct failure *failure)
{
    const struct text run = account->run.text;
    report_stale(account->spend);
    if (account->spend[BUDGET].kind != NIL)
        return OK;
    fail(failure, NO_RUN, "set one with 'fluxbudgetctl run set --run ");
    failure->hint[1] = run;
    failure->hint[2] = text(" --budget N'");
    add_string(failure, "run ");
    add_piece(failure, run);
    add_string(failure, " has no budget");
    return report(failure);
}

int verb_remaining(const struct options *options, const char *path)
{
    struct account account;
    struct failure failure = {.count = 0};
    if (ask_remaining(options, path, &account, &failure)) {
        static const struct value zero = {.kind = INTEGER};
        struct value left = account.spend[REMAINING];
        if (options->json) {
            json_fields(run_fields, (struct value[]){account.run, account.phase}, 2);
            json_fields(spend_fields, account.spend, SPEND_FIELDS);
            put_string(&out, "}\n");
        } else {
            print(left.kind == NIL ? zero : left);
            put_string(&out, "\n");
        }
        return finish(&account, &failure);
    }
    bool unreached = failure.exit_code == UNREACHABLE || failure.exit_code == NO_ANSWER;
    bool use_default = options->has_default && unreached;
    if (failure.exit_code == NO_RUN || use_default) {
        uint64_t left = use_default ? options->fallback : 0;
        if (options->json) {
            json_without_numbers(left, use_default ? "no_answer" : "no_run", use_default);
        } else {
            put_integer(&out, false, left);
            put_string(&out, "\n");
        }
    }
    int code = report(&failure);
    return use_default ? OK : code;
}

int verb_env(const struct options *options, const char *path)
{
    struct account account;
    struct failure failure = {.count = 0};
    if (!ask_remaining(options, path, &account, &failure))
        return report(&failure);
    struct value left = account.spend[REMAINING];
    if (left.kind == INTEGER) {
        /* Its readers take 0 as "no limit", so an exhausted budget is 1. */
        put_string(&out, "export FLUX_BUDGET_REMAINING=");
        put_integer(&out, left.negative, left.magnitude == 0 ? 1 : left.magnitude);
        put_string(&out, "\n");
    }
    return finish(&account, &failure);
}

static void pack_override(struct packer *to, const void *context)
{
    const struct options *options = context;
    const char *reason = options->override != NULL ? options->override : variable("CLAVAIN_SKIP_BUDGET");
    pack_string(to, "override");
    if (reason != NULL)
        pack_folded(to, text(reason));
    else
        pack_nil(to);
}

int verb_check(const struct options *options, const char *path)
{
    struct request request = {
        .path = path, .op = "check", .options = options, .pairs = 1, .pack_rest = pack_override, .context = options};
    struct value answer, spend[SPEND_FIELDS], found[CHECK_FIELDS];
    struct failure failure = {.count = 0};
    if (!ask(&request, options->seconds, &answer, &failure) || !take_spend(&answer, spend, &failure))
        return report(&failure);
    if (!take(&answer, check_fields, CHECK_FIELDS, found)) {
        not_understood(&failure, "it is incomplete");
        return report(&failure);
    }
    report_stale(spend);
    if (found[NOTE].text.size > 0)
        report_value("fluxbudgetctl: ", found[NOTE]);
    if (found[OVERRIDDEN].kind == TEXT && found[OVERRIDDEN].text.size > 0)
        report_value("fluxbudgetctl: the budget is exceeded; overridden: ", found[OVERRIDDEN]);
    if (options->json) {
        json_fields(check_fields, found, CHECK_FIELDS);
        json_fields(spend_fields, spend, SPEND_FIELDS);
        put_string(&out, "}\n");
    } else {
        if (found[ALLOWED].truth)
            put_string(&out, "ok");
        else
            print(found[REFUSAL]);
        put_string(&out, "\n");
    }
    return found[ALLOWED].truth ? OK : REFUSED;
}

int verb_ping(const struct options *options, const char *path)
{
    struct value answer, found[PING_FIELDS];
    struct failure failure = {.count = 0};
    double before = now();
    if (!ask(&(struct request){.path = path, .op = "ping"}, options->seconds, &answer, &failure))
        return report(&failure);
    double took = (now() - before) * 1000;
    if (!take(&answer, ping_fields, PING_FIELDS, found)) {
        not_understood(&failure, "it is incomplete");
        return report(&failure);
    }
    char written[32];
    snprintf(written, sizeof written, options->json ? "%.3f" : "%.2f", took);
    if (options->json) {
        json_fields(ping_fields, found, PING_FIELDS);
        json_name("round_trip_ms");
        put_float(&out, strtod(written, NULL));
        put_string(&out, "}\n");
        return OK;
    }
    put_string(&out, "fluxbudgetd ");
    print(found[DAEMON_VERSION]);
    put_string(&out, " (pid ");
    print(found[PID]);
    put_string(&out, ") answered in ");
    put_string(&out, written);
    put_string(&out, " ms\n");
    return OK;
}
