/* Write requests, in MessagePack. Numbers and lengths always have the full width, which is allowed and simpler. */
#include "fluxbudgetctl.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

enum { FIXMAP = 0x80, FIXSTR = 0xA0, NIL = 0xC0, FALSE_BYTE = 0xC2, BIN32 = 0xC6, UINT64 = 0xCF, ARRAY32 = 0xDD };

/* Put a type byte and a big-endian number. */
static void put_head(struct buffer *to, unsigned type, uint64_t number, size_t width)
{
    unsigned char head[9] = {(unsigned char)type};
    for (size_t i = 0; i < width; i++)
        head[width - i] = (unsigned char)(number >> 8 * i);
    put(to, head, 1 + width);
}

/* Put a name of fewer than 32 bytes. */
static void put_name(struct buffer *to, const char *name)
{
    put_head(to, FIXSTR | (unsigned)strlen(name), 0, 0);
    put_string(to, name);
}

static void put_number(struct buffer *to, const char *name, int64_t number)
{
    put_name(to, name);
    put_head(to, UINT64, (uint64_t)number, 8);
}

static void put_boolean(struct buffer *to, const char *name, bool truth)
{
    put_name(to, name);
    put_head(to, FALSE_BYTE + truth, 0, 0);
}

static void put_binary(struct buffer *to, struct bytes bytes)
{
    put_head(to, BIN32, bytes.size, 4);
    put(to, bytes.at, bytes.size);
}

static struct bytes text(const char *string)
{
    return (struct bytes){string, strlen(string)};
}

/* Begin a frame: leave room for its length, then a map of fewer than 16 fields. */
static void begin(struct buffer *to, const char *op, unsigned fields)
{
    to->size = HEADER;
    put_head(to, FIXMAP | fields, 0, 0);
    put_number(to, "v", 1);
    put_name(to, "op");
    put_name(to, op);
}

static void end(struct buffer *to, struct bytes rest, bool more, bool cut)
{
    put_boolean(to, "more", more);
    put_boolean(to, "cut", cut);
    put_name(to, "stdin");
    put_head(to, BIN32, rest.size, 4);
    to->is_full = to->is_full || rest.size > to->room - to->size;
    for (int i = 0; i < HEADER; i++)
        to->at[i] = (char)((to->size + rest.size - HEADER) >> 8 * (HEADER - 1 - i));
}

static void put_words(struct buffer *to, char **words)
{
    size_t count = 0;
    while (words[count] != NULL)
        count++;
    put_name(to, "words");
    put_head(to, ARRAY32, count, 4);
    for (size_t i = 0; i < count; i++)
        put_binary(to, text(words[i]));
}

static void put_directory(struct buffer *to)
{
    put_name(to, "cwd");
    size_t start = to->size;
    put_head(to, BIN32, 0, 4);
    if (to->is_full || to->room - to->size < PATH_MAX) {
        to->is_full = true;
        return;
    }
    const char *path = getcwd(to->at + to->size, PATH_MAX);
    to->size = start;
    if (path != NULL) {
        put_head(to, BIN32, strlen(path), 4);
        to->size += strlen(path);
    } else {
        put_head(to, NIL, 0, 0);
    }
}

static void put_environment(struct buffer *to)
{
    static const char *const names[] = {
        "FLUXBUDGET_RUN",         "CLAVAIN_BEAD_ID",              "CLAUDE_CODE_SESSION_ID", "CLAUDE_SESSION_ID",
        "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ATTENDED", "CLAVAIN_SKIP_BUDGET",    "COLUMNS",
        "NO_COLOR",               "TERM",
    };
    enum { NAMES = sizeof names / sizeof names[0] };
    const char *values[NAMES];
    unsigned count = 0;
    for (size_t i = 0; i < NAMES; i++)
        count += (values[i] = variable(names[i])) != NULL;
    put_name(to, "env");
    put_head(to, FIXMAP | count, 0, 0);
    for (size_t i = 0; i < NAMES; i++) {
        if (values[i] != NULL) {
            put_name(to, names[i]);
            put_binary(to, text(values[i]));
        }
    }
}

void pack_command(struct buffer *to, const struct call *call, struct bytes rest, bool more, bool cut)
{
    int64_t left = call->deadline - now();
    begin(to, "command", 10);
    put_number(to, "wait_ms", left > 0 ? left / (SECOND / 1000) : 0);
    put_number(to, "started_ns", call->started);
    put_words(to, call->words);
    put_directory(to);
    put_environment(to);
    end(to, rest, more, cut);
}

void pack_stdin(struct buffer *to, struct bytes rest, bool more, bool cut)
{
    begin(to, "stdin", 5);
    end(to, rest, more, cut);
}
