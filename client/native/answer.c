/* Read answers, in MessagePack. Nothing in them is trusted. */
#include "fluxbudgetctl.h"

#include <string.h>

/* OTHER: a valid value of a kind that no field has: nil, a float, a signed integer. */
enum kind { BROKEN, OTHER, BOOLEAN, INTEGER, STRING, BINARY, ARRAY, MAP };

struct value {
    enum kind kind;
    uint64_t number;    /* of a boolean or an integer; of an array or a map, how many items or pairs follow */
    struct bytes bytes; /* of a string; of any other value, all that follows */
};

/* The type bytes from 0xC0 to 0xDF, and the width of the number that follows. (The protocol uses no extensions and no
   short floats.) */
static const struct {
    unsigned char kind, width;
} types[0x20] = {
    [0x00] = {OTHER, 0},   [0x02] = {BOOLEAN, 0}, [0x03] = {BOOLEAN, 0}, [0x04] = {BINARY, 1}, [0x05] = {BINARY, 2},
    [0x06] = {BINARY, 4},  [0x0B] = {OTHER, 8},   [0x0C] = {INTEGER, 1}, [0x0D] = {INTEGER, 2}, [0x0E] = {INTEGER, 4},
    [0x0F] = {INTEGER, 8}, [0x10] = {OTHER, 1},   [0x11] = {OTHER, 2},   [0x12] = {OTHER, 4},  [0x13] = {OTHER, 8},
    [0x19] = {STRING, 1},  [0x1A] = {STRING, 2},  [0x1B] = {STRING, 4},  [0x1C] = {ARRAY, 2},  [0x1D] = {ARRAY, 4},
    [0x1E] = {MAP, 2},     [0x1F] = {MAP, 4},
};

/* Take this many bytes. If there are fewer, return null and leave none. */
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

/* Take a value, or only the head of an array or a map. */
static struct value take_value(struct bytes *from)
{
    struct value value = {.kind = BROKEN};
    const char *at = take(from, 1);
    unsigned type = at != NULL ? (unsigned char)*at : 0xC1; /* a byte that MessagePack never uses */
    size_t width = 0;
    if (type < 0x80 || type >= 0xE0) {
        value = (struct value){.kind = type < 0x80 ? INTEGER : OTHER, .number = type};
    } else if (type < 0xC0) {
        bool is_string = type >= 0xA0;
        value.kind = is_string ? STRING : type < 0x90 ? MAP : ARRAY;
        value.number = type & (is_string ? 0x1F : 0x0F);
    } else {
        width = types[type - 0xC0].width;
        value = (struct value){.kind = types[type - 0xC0].kind, .number = width > 0 ? 0 : type & 1};
    }
    if ((at = take(from, width)) == NULL)
        return (struct value){.kind = BROKEN};
    for (size_t i = 0; i < width; i++)
        value.number = value.number << 8 | (unsigned char)at[i];
    value.bytes = *from;
    if (value.kind == STRING || value.kind == BINARY) {
        value.bytes.size = (size_t)value.number;
        if (take(from, value.number) == NULL)
            value.kind = BROKEN;
    }
    return value;
}

/* Take a value with all that it contains. Items are counted instead of recursing, so any depth is allowed. */
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

/* Take the pairs of a map: put the values of known fields into `found`, and skip other pairs. Return false if the map
   is broken, or if a field occurs twice or has a value of another kind. */
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
