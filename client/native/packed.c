/* MessagePack: writing requests, with the type bytes of fixed width where that is simpler, and reading answers. */
#include "fluxbudgetctl.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

/* --- requests */

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

static void put_binary(struct buffer *to, const char *string)
{
    put_head(to, BIN32, strlen(string), 4);
    put_string(to, string);
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

static void end(struct buffer *to, size_t size, bool more, bool cut)
{
    put_boolean(to, "more", more);
    put_boolean(to, "cut", cut);
    put_name(to, "stdin");
    put_head(to, BIN32, size, 4);
    size_t length = to->size - HEADER + size;
    for (int i = 0; i < HEADER; i++)
        to->at[i] = (char)(length >> 8 * (HEADER - 1 - i));
}

static void put_words(struct buffer *to, char **words)
{
    size_t count = 0;
    while (words[count] != NULL)
        count++;
    put_name(to, "words");
    put_head(to, ARRAY32, count, 4);
    for (size_t i = 0; i < count; i++)
        put_binary(to, words[i]);
}

static void put_directory(struct buffer *to)
{
    static char directory[PATH_MAX];
    put_name(to, "cwd");
    if (getcwd(directory, sizeof directory) != NULL)
        put_binary(to, directory);
    else
        put_head(to, NIL, 0, 0);
}

static void put_environment(struct buffer *to)
{
    static const char *const names[] = {
        "FLUXBUDGET_RUN",      "CLAVAIN_BEAD_ID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_SESSION_ID",
        "CLAVAIN_SKIP_BUDGET", "COLUMNS",         "NO_COLOR",               "TERM",
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
            put_binary(to, values[i]);
        }
    }
}

void pack_command(struct buffer *to, const struct call *call, size_t size, bool more, bool cut)
{
    int64_t left = call->deadline - now();
    begin(to, "command", 10);
    put_number(to, "wait_ms", left > 0 ? left / (SECOND / 1000) : 0);
    put_number(to, "started_ns", call->started);
    put_words(to, call->words);
    put_directory(to);
    put_environment(to);
    end(to, size, more, cut);
}

void pack_stdin(struct buffer *to, size_t size, bool more, bool cut)
{
    begin(to, "stdin", 5);
    end(to, size, more, cut);
}

/* --- answers */

/* OTHER: a whole value that no field has: nil, a float, a signed integer. */
enum kind { BROKEN, OTHER, BOOLEAN, INTEGER, STRING, BINARY, ARRAY, MAP };

struct value {
    enum kind kind;
    uint64_t number;    /* of a boolean or an integer; of an array or a map, how many items or pairs follow */
    struct bytes bytes; /* of a string; of an array or a map, all that follows */
};

/* What the type bytes from 0xC0 to 0xDF mean, and the width of the number that follows. (The protocol does without
   extensions and short floats.) */
static const struct {
    unsigned char kind, width;
} types[0x20] = {
    [0x00] = {OTHER, 0},   [0x02] = {BOOLEAN, 0}, [0x03] = {BOOLEAN, 0}, [0x04] = {BINARY, 1}, [0x05] = {BINARY, 2},
    [0x06] = {BINARY, 4},  [0x0B] = {OTHER, 8},   [0x0C] = {INTEGER, 1}, [0x0D] = {INTEGER, 2}, [0x0E] = {INTEGER, 4},
    [0x0F] = {INTEGER, 8}, [0x10] = {OTHER, 1},   [0x11] = {OTHER, 2},   [0x12] = {OTHER, 4},  [0x13] = {OTHER, 8},
    [0x19] = {STRING, 1},  [0x1A] = {STRING, 2},  [0x1B] = {STRING, 4},  [0x1C] = {ARRAY, 2},  [0x1D] = {ARRAY, 4},
    [0x1E] = {MAP, 2},     [0x1F] = {MAP, 4},
};

/* Take this many bytes; return null, and nothing is left, if there are fewer. */
static const char *take(struct bytes *from, uint64_t size)
{
    const char *at = from->at;
    if (size > from->size) {
        from->size = 0;
        return NULL;
    }
    from->at += size;
    from->size -= (size_t)size;
    return at;
}

/* Take a value; of an array or a map only its head. */
static struct value take_value(struct bytes *from)
{
    struct value value = {BROKEN, 0, {NULL, 0}};
    const char *at = take(from, 1);
    unsigned type = at != NULL ? (unsigned char)*at : 0xC1; /* a byte that MessagePack never uses */
    size_t width = 0;
    if (type < 0x80 || type >= 0xE0) {
        value.kind = type < 0x80 ? INTEGER : OTHER;
        value.number = type;
    } else if (type < 0xC0) {
        value.kind = type < 0x90 ? MAP : type < 0xA0 ? ARRAY : STRING;
        value.number = type & (type < 0xA0 ? 0x0F : 0x1F);
    } else {
        value.kind = types[type - 0xC0].kind;
        value.number = type & 1; /* of a boolean; any other has a width */
        width = types[type - 0xC0].width;
    }
    if (width > 0) {
        at = take(from, width);
        value.number = 0;
        for (size_t i = 0; at != NULL && i < width; i++)
            value.number = value.number << 8 | (unsigned char)at[i];
    }
    if (value.kind == STRING || value.kind == BINARY)
        value.bytes = (struct bytes){at = take(from, value.number), (size_t)value.number};
    else if (value.kind == ARRAY || value.kind == MAP)
        value.bytes = *from;
    if (at == NULL)
        value.kind = BROKEN;
    return value;
}

/* Take a value with all that it contains. Items are counted, so nesting needs no memory, and any depth is allowed. */
static struct value take_whole(struct bytes *from)
{
    struct value value = take_value(from), item = value;
    uint64_t left = 1;
    for (; item.kind != BROKEN; item = take_value(from)) {
        if (item.kind == ARRAY || item.kind == MAP)
            left += item.kind == MAP ? 2 * item.number : item.number;
        if (--left == 0)
            return value;
    }
    return item;
}

struct field {
    const char *name;
    enum kind kind;
};

static bool equals(struct bytes bytes, const char *string)
{
    return bytes.size == strlen(string) && memcmp(bytes.at, string, bytes.size) == 0;
}

/* Take the pairs of a map: `found` gets the values of the fields that are there, and other pairs are skipped. Return
   false if the map is broken, or has a field twice or with a value of another kind. */
static bool take_fields(struct bytes *from, uint64_t pairs, const struct field *fields, size_t count,
                        struct value *found)
{
    for (; pairs > 0; pairs--) {
        struct value key = take_whole(from), value = take_whole(from);
        size_t i = 0;
        if (key.kind != STRING || value.kind == BROKEN)
            return false;
        while (i < count && !equals(key.bytes, fields[i].name))
            i++;
        if (i < count && (found[i].kind != BROKEN || value.kind != fields[i].kind))
            return false;
        if (i < count)
            found[i] = value;
    }
    return true;
}

enum { IS_OK, OP, IS_MINE, EXIT, OUT, ERR, EXPORTS, ERROR, FIELDS };

static const struct field answer_fields[FIELDS] = {
    [IS_OK] = {"ok", BOOLEAN}, [OP] = {"op", STRING},  [IS_MINE] = {"mine", BOOLEAN},   [EXIT] = {"exit", INTEGER},
    [OUT] = {"out", BINARY},   [ERR] = {"err", BINARY}, [EXPORTS] = {"exports", BINARY}, [ERROR] = {"error", MAP},
};
static const struct field error_field = {"code", STRING};

/* True if a code is a word that fits into $FLUXBUDGETCTL_FAILED. */
static bool is_code(struct bytes code)
{
    bool is_word = code.size > 0 && code.size <= 64;
    for (size_t i = 0; is_word && i < code.size; i++)
        is_word = code.at[i] > ' ' && code.at[i] < 0x7F;
    return is_word;
}

bool read_answer(struct bytes body, struct answer *answer)
{
    struct value found[FIELDS] = {{.kind = BROKEN}}, code = {.kind = BROKEN};
    struct value map = take_value(&body);
    if (map.kind != MAP || !take_fields(&body, map.number, answer_fields, FIELDS, found) || body.size > 0)
        return false;
    *answer = (struct answer){
        .is_ok = found[IS_OK].number,
        .is_mine = found[IS_MINE].number,
        .exit_code = (int)found[EXIT].number,
        .out = found[OUT].bytes,
        .err = found[ERR].bytes,
        .exports = found[EXPORTS].bytes,
    };
    if (found[IS_OK].kind == BROKEN)
        return false;
    if (!answer->is_ok) {
        struct value error = found[ERROR];
        if (error.kind == BROKEN || !take_fields(&error.bytes, error.number, &error_field, 1, &code))
            return false;
        answer->error = code.bytes;
        return code.kind != BROKEN && is_code(code.bytes);
    }
    bool is_whole = found[EXIT].kind != BROKEN && found[EXIT].number <= 255 && found[OUT].kind != BROKEN &&
                    found[ERR].kind != BROKEN && found[EXPORTS].kind != BROKEN;
    return found[OP].kind != BROKEN && equals(found[OP].bytes, "command") && found[IS_MINE].kind != BROKEN &&
           (!answer->is_mine || is_whole);
}
