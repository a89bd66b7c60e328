/* `hook` and `statusline`: pass Claude Code's JSON to the daemon, and the daemon's answer to Claude Code. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "account.h"
#include "connection.h"
#include "output.h"
#include "verbs.h"

/* This many bytes of a longer input are sent (stdio.py). */
enum { INPUT_LIMIT = 256 * 1024, CHUNK = 64 * 1024 };

/* The width limit of a line when none is given. */
enum { MOST_CELLS = 64 * 1024 };

struct input {
    struct text data;
    bool whole; /* false if there was more, which was discarded */
    bool ended; /* false if the deadline came before the end of the input */
};

/* Read stdin to its end, or until the deadline. A terminal or an unreadable stdin counts as empty. */
static struct input read_input(double deadline)
{
    static char data[INPUT_LIMIT + CHUNK] = {0};
    struct input input = {{data, 0}, true, true};
    if (isatty(STDIN_FILENO))
        return input;
    for (;;) {
        if (deadline - now() <= 0 || !wait_for(STDIN_FILENO, POLLIN, deadline)) {
            input.ended = false;
            return input;
        }
        ssize_t size = read(STDIN_FILENO, data + input.data.size, CHUNK);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return input;
        input.data.size += (size_t)size;
        if (input.data.size > INPUT_LIMIT) {
            input.data.size = INPUT_LIMIT;
            input.whole = false;
        }
    }
}

static struct text without_space(struct text rest)
{
    while (rest.size > 0 && memchr(" \t\r\n", *rest.bytes, 4) != NULL)
        rest = (struct text){rest.bytes + 1, rest.size - 1};
    return rest;
}

/* Return the value of the first field with this name if it is a plain string (json_fields.py has the rule); else its
   bytes are null. `key` includes the quotes. */
static struct text text_field(struct text data, const char *key)
{
    static const struct text none = {NULL, 0};
    const char *end = data.bytes + data.size, *at = data.bytes;
    while ((at = memmem(at, (size_t)(end - at), key, strlen(key))) != NULL) {
        const char *after = at + strlen(key);
        struct text rest = without_space((struct text){after, (size_t)(end - after)});
        at++;
        if (rest.size == 0 || *rest.bytes != ':')
            continue;
        rest = without_space((struct text){rest.bytes + 1, rest.size - 1});
        if (rest.size == 0 || *rest.bytes != '"')
            return none;
        const char *quote = memchr(rest.bytes + 1, '"', rest.size - 1);
        if (quote == NULL)
            return none;
        struct text found = {rest.bytes + 1, (size_t)(quote - rest.bytes - 1)};
        return found.size == 0 || memchr(found.bytes, '\\', found.size) != NULL ? none : found;
    }
    return none;
}

static void debug(const struct text *pieces, size_t count)
{
    if (variable("FLUXBUDGET_DEBUG") == NULL)
        return;
    begin_line("fluxbudgetctl hook: ");
    for (size_t i = 0; i < count; i++)
        put_one_line(&err, pieces[i]);
    end_line();
}

static void debug_error(const char *what, const char *why)
{
    debug((struct text[]){text(what), text(why)}, 2);
}

/* Append lines to an open file; return null, or the error. */
static const char *append(int file, struct text lines)
{
    struct stat about;
    char last = '\n';
    if (fstat(file, &about) != 0)
        return strerror(errno);
    if (!S_ISREG(about.st_mode))
        return "it is not a regular file";
    if (about.st_size > 0 && pread(file, &last, 1, about.st_size - 1) < 0)
        return strerror(errno);
    /* One write, so that the lines of other processes cannot get in between. */
    static char all[(1 << 20) + 2];
    size_t size = 0;
    if (last != '\n')
        all[size++] = '\n';
    memcpy(all + size, lines.bytes, lines.size);
    size += lines.size;
    if (all[size - 1] != '\n')
        all[size++] = '\n';
    return write(file, all, size) < 0 ? strerror(errno) : NULL;
}

/* Append lines to the file that Claude Code reads environment variables from. */
static void export_lines(struct text lines)
{
    const char *path = variable("CLAUDE_ENV_FILE");
    if (path == NULL)
        return;
    /* O_NONBLOCK: the path may lead to a FIFO or a device, which would block the hook. */
    int file = open(path, O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
    const char *why = file < 0 ? strerror(errno) : append(file, lines);
    if (file >= 0)
        close(file);
    if (why != NULL)
        debug_error("the file named by $CLAUDE_ENV_FILE cannot be written: ", why);
}

static void pack_whole(struct packer *to, const void *context)
{
    pack_string(to, "whole");
    pack_boolean(to, *(const bool *)context);
}

/* Ask the daemon; return false with a failure for any kind of error. */
static bool ask_hook(const struct options *options, const char *path, const struct input *input, double left,
                     struct text *output, struct text *exports, struct failure *failure)
{
    if (!input->ended || left <= 0) {
        fail(failure, NO_ANSWER, "");
        return add_string(failure, "the hook's input did not end in time");
    }
    struct request request = {.path = path, .op = "hook", .options = options, .input = input->data,
                              .pairs = 1, .pack_rest = pack_whole, .context = &input->whole};
    struct value answer;
    if (!ask(&request, left, &answer, failure))
        return false;
    struct value op = field(&answer, "op"), printed = field(&answer, "output"), lines = field(&answer, "exports");
    bool are_texts = (printed.kind == TEXT || printed.kind == ABSENT) && (lines.kind == TEXT || lines.kind == ABSENT);
    if (op.kind != TEXT || !equals(op.text, "hook") || !are_texts)
        return not_understood(failure, "it is not a hook's answer");
    *output = printed.text;
    *exports = lines.text;
    return true;
}

/* True if this is the PreToolUse event of a sub-agent's launch. */
static bool is_launch(struct text data)
{
    struct text tool = text_field(data, "\"tool_name\"");
    return equals(text_field(data, "\"hook_event_name\""), "PreToolUse") &&
           (equals(tool, "Agent") || equals(tool, "Task"));
}

static void put_denial(const struct failure *failure)
{
    put_string(&out, "{\"hookSpecificOutput\": {\"hookEventName\": \"PreToolUse\", \"permissionDecision\": \"deny\", "
                     "\"permissionDecisionReason\": \"fluxbudget: the daemon gave no answer (");
    for (size_t i = 0; i < failure->count; i++)
        put_json_one_line(&out, failure->pieces[i]);
    put_string(&out, "), and FLUXBUDGET_FAIL_CLOSED=1\"}}\n");
}

/* Make writes to stdout and stderr give up at the deadline. */
static void limit_output(double deadline)
{
    out.bounded = err.bounded = true;
    out.deadline = err.deadline = deadline;
}

int verb_hook(const struct options *options, const char *path)
{
    double deadline = now() + options->seconds;
    limit_output(deadline);
    struct input input = read_input(deadline);
    struct text output = {NULL, 0}, exports = {NULL, 0};
    struct failure failure = {.count = 0};
    if (input.data.size == 0)
        return OK;
    bool answered = ask_hook(options, path, &input, deadline - now(), &output, &exports, &failure);
    if (!answered)
        debug(failure.pieces, failure.count);
    if (exports.size > 0)
        export_lines(exports);
    const char *closed = variable("FLUXBUDGET_FAIL_CLOSED");
    if (!answered && closed != NULL && strcmp(closed, "1") == 0 && is_launch(input.data))
        put_denial(&failure);
    if (output.size > 0) {
        put(&out, output);
        put_string(&out, "\n");
    }
    flush(&out);
    if (out.error != 0)
        debug_error("the output cannot be written: ",
                    out.error == ETIMEDOUT ? "the reader did not read it in time" : strerror(out.error));
    out.error = 0;
    return OK;
}

struct line_style {
    int width;
    bool colour;
};

static void pack_style(struct packer *to, const void *context)
{
    const struct line_style *style = context;
    pack_string(to, "width");
    if (style->width > 0)
        pack_count(to, (uint64_t)style->width);
    else
        pack_nil(to);
    pack_string(to, "colour");
    pack_boolean(to, style->colour);
}

/* Phases are ASCII. Replacing anything else by a question mark makes sure that the line's length is its width. */
static size_t width_of(struct text utf8)
{
    size_t width = 0;
    for (size_t i = 0; i < utf8.size; i++)
        width += ((unsigned char)utf8.bytes[i] & 0xC0) != 0x80;
    return width;
}

static void put_ascii(struct text utf8)
{
    for (size_t i = 0; i < utf8.size; i++) {
        unsigned char byte = (unsigned char)utf8.bytes[i];
        if ((byte & 0xC0) != 0x80)
            put(&out, byte >= 0x20 && byte < 0x7F ? (struct text){utf8.bytes + i, 1} : text("?"));
    }
}

/* Put a status line that fits into the width: `PHASE SPENT/BUDGET PCT%` (state_file.py, `line`). If it is too long, the
   tokens are left out, then the phase. Colours take no cells. */
static void put_state(const struct state *state, struct line_style style)
{
    static const struct {
        const char *state, *colour;
    } colours[] = {{"ok", "32"}, {"warning", "33"}, {"exceeded", "1;31"}, {"unlimited", "36"}};
    const struct value *spend = state->account.spend;
    struct text phase = state->account.phase.text;
    const char *mark = spend[STALE].truth ? " (stale)" : "";
    char share[32], tokens[32] = "", spent[8];
    write_short(spend[SPENT].magnitude, spent);
    if (spend[BUDGET].kind == NIL) {
        snprintf(share, sizeof share, "%s", spent);
    } else {
        char budget[8];
        write_short(spend[BUDGET].magnitude, budget);
        snprintf(share, sizeof share, "%llu%%", (unsigned long long)spend[PCT].number);
        snprintf(tokens, sizeof tokens, "%s/%s ", spent, budget);
    }
    size_t limit = style.width > 0 ? (size_t)style.width : MOST_CELLS;
    size_t least = strlen(share) + strlen(mark), named = width_of(phase) + 1 + least;
    if (named <= limit) {
        put_ascii(phase);
        put_string(&out, " ");
        put_string(&out, named + strlen(tokens) <= limit ? tokens : "");
    }
    if (least > limit) {
        mark = "";
        if (strlen(share) > limit)
            share[limit] = '\0';
    }
    for (size_t i = 0; style.colour && i < sizeof colours / sizeof colours[0]; i++) {
        if (equals(spend[STATE].text, colours[i].state)) {
            put_string(&out, "\x1b[");
            put_string(&out, colours[i].colour);
            put_string(&out, "m");
        }
    }
    put_string(&out, share);
    put_string(&out, style.colour ? "\x1b[0m" : "");
    put_string(&out, mark);
}

/* Ask for the line and put it; without a socket, put a line made from the state file. */
static bool put_line(const struct options *options, const char *path, struct text input, double left,
                     struct failure *failure)
{
    static struct state state;
    const char *terminal = variable("TERM"), *columns = variable("COLUMNS");
    struct line_style style = {options->width, options->colour && variable("NO_COLOR") == NULL};
    if (style.width == 0 && columns != NULL)
        style.width = cells(columns);
    if (terminal != NULL && strcmp(terminal, "dumb") == 0)
        style.colour = false;
    struct request request = {.path = path, .op = "statusline", .options = options, .input = input,
                              .pairs = 2, .pack_rest = pack_style, .context = &style};
    struct value answer;
    if (!ask(&request, left, &answer, failure)) {
        if (!failure->no_socket || !find_state(options, path, text_field(input, "\"session_id\""), &state, failure))
            return false;
        put_state(&state, style);
        return true;
    }
    struct value line = field(&answer, "line"), why = field(&answer, "stale_why");
    if (line.kind != TEXT)
        return not_understood(failure, "it has no line");
    if (why.kind == TEXT && why.text.size > 0) {
        begin_line("fluxbudgetctl: last known numbers: ");
        put_one_line(&err, why.text);
        end_line();
    }
    put(&out, line.text);
    return true;
}

int verb_statusline(const struct options *options, const char *path)
{
    double deadline = now() + options->seconds;
    limit_output(deadline);
    struct input input = read_input(deadline);
    double left = deadline - now();
    struct failure failure = {.count = 0};
    if (!input.ended || left <= 0) {
        snprintf(failure.number, sizeof failure.number, "stdin did not end within %g s", options->seconds);
        fail(&failure, NO_ANSWER, "redirect stdin from /dev/null");
        add_string(&failure, failure.number);
        return report(&failure);
    }
    if (!put_line(options, path, input.data, left, &failure))
        return report(&failure);
    put_string(&out, "\n");
    flush(&out);
    if (out.error != ETIMEDOUT)
        return OK; /* `main` reports any other error, as for every verb */
    out.error = 0;
    fail(&failure, NO_ANSWER, "make sure that stdout is read");
    add_string(&failure, "the line cannot be written: the reader did not read it in time");
    return report(&failure);
}
