#include "packed.h"

#include <stdio.h>
#include <string.h>

/* Deeper nesting is refused (wire/packed.py). */
enum { DEEPEST = 32 };

struct reader {
    struct text left;
    const char *problem;
    char *room;
};

static struct value broken(struct reader *from, const char *problem)
{
    if (from->problem == NULL)
        from->problem = problem;
    return (struct value){.kind = ABSENT};
}

static struct value truncated(struct reader *from)
{
    return broken(from, "truncated or damaged MessagePack");
}

/* Take a big-endian number of `width` bytes. */
static uint64_t take(struct reader *from, size_t width)
{
    uint64_t number = 0;
    if (from->left.size < width) {
        truncated(from);
        return 0;
    }
    for (size_t i = 0; i < width; i++)
        number = number << 8 | (unsigned char)from->left.bytes[i];
    from->left.bytes += width;
    from->left.size -= width;
    return number;
}

static struct value make_integer(uint64_t number, size_t width, bool is_signed)
{
    bool below = is_signed && (number >> (8 * width - 1)) != 0;
    if (below && width < 8)
        number |= UINT64_MAX << (8 * width);
    return (struct value){.kind = INTEGER, .negative = below, .magnitude = below ? 0 - number : number};
}

static struct value take_float(struct reader *from)
{
    uint64_t bits = take(from, 8);
    struct value found = {.kind = FLOAT};
    memcpy(&found.number, &bits, sizeof found.number);
    return found;
}

static struct value take_text(struct reader *from, uint64_t size)
{
    struct value found = {.kind = TEXT, .text = {from->left.bytes, (size_t)size}};
    if (from->left.size < size)
        return truncated(from);
    from->left.bytes += size;
    from->left.size -= (size_t)size;
    return found;
}

static struct value container(const struct reader *from, enum kind kind, uint64_t items)
{
    return (struct value){.kind = kind, .text = from->left, .items = (uint32_t)items};
}

/* Take a value; of an array or a map only its head. */
static struct value take_value(struct reader *from)
{
    unsigned type = (unsigned)take(from, 1);
    if (from->problem != NULL)
        return (struct value){.kind = ABSENT};
    if (type < 0x80 || type >= 0xE0)
        return make_integer(type, 1, true);
    if (type < 0x90)
        return container(from, MAP, type & 15);
    if (type < 0xA0)
        return container(from, ARRAY, type & 15);
    if (type < 0xC0)
        return take_text(from, type & 31);
    uint64_t number;
    switch (type) {
    case 0xC0:
        return (struct value){.kind = NIL};
    case 0xC2:
    case 0xC3:
        return (struct value){.kind = BOOLEAN, .truth = type == 0xC3};
    case 0xCB:
        return take_float(from);
    case 0xCC:
    case 0xCD:
    case 0xCE:
    case 0xCF:
        return make_integer(take(from, (size_t)1 << (type - 0xCC)), (size_t)1 << (type - 0xCC), false);
    case 0xD0:
    case 0xD1:
    case 0xD2:
    case 0xD3:
        return make_integer(take(from, (size_t)1 << (type - 0xD0)), (size_t)1 << (type - 0xD0), true);
    case 0xD9:
    case 0xDA:
    case 0xDB:
        number = take(from, (size_t)1 << (type - 0xD9));
        return take_text(from, number);
    case 0xDC:
    case 0xDD:
        number = take(from, type == 0xDC ? 2 : 4);
        return container(from, ARRAY, number);
    case 0xDE:
    case 0xDF:
        number = take(from, type == 0xDE ? 2 : 4);
        return container(from, MAP, number);
    default:
        snprintf(from->room, 64, "MessagePack type 0x%02x is not part of this protocol", type);
        return broken(from, from->room);
    }
}

/* Check the next value, including its items. */
static void check(struct reader *from, int depth)
{
    struct value found = take_value(from);
    if (from->problem == NULL && found.kind == TEXT && !is_utf8(found.text))
        truncated(from);
    if (found.kind != ARRAY && found.kind != MAP)
        return;
    if (depth == DEEPEST)
        broken(from, "nested too deeply");
    for (uint32_t i = 0; i < found.items && from->problem == NULL; i++) {
        if (found.kind == MAP) {
            bool is_text = from->left.size > 0 && take_value(&(struct reader){from->left, NULL, from->room}).kind == TEXT;
            check(from, depth + 1);
            if (!is_text)
                broken(from, "a map's key is not text");
        }
        if (from->problem == NULL)
            check(from, depth + 1);
    }
}

const char *check_packed(struct text bytes, char room[64])
{
    struct reader from = {bytes, NULL, room};
    check(&from, 0);
    if (from.left.size > 0)
        broken(&from, "bytes follow the MessagePack value");
    return from.problem;
}

/* Skip the next value, including its items. */
static void skip(struct reader *from)
{
    for (uint64_t values = 1; values > 0 && from->problem == NULL; values--) {
        struct value found = take_value(from);
        values += found.kind == MAP ? 2 * (uint64_t)found.items : found.items;
    }
}

struct value read_packed(struct text bytes)
{
    char room[64] = "";
    return take_value(&(struct reader){bytes, NULL, room});
}

struct value field(const struct value *map, const char *key)
{
    char room[64] = "";
    struct reader from = {map->text, NULL, room};
    struct value found = {.kind = ABSENT};
    for (uint32_t i = 0; map->kind == MAP && i < map->items; i++) {
        struct value name = take_value(&from);
        if (equals(name.text, key))
            found = read_packed(from.left);
        skip(&from);
    }
    return found;
}

static void add(struct packer *to, const char *bytes, size_t size)
{
    if (to->size + size <= to->room)
        memcpy(to->bytes + to->size, bytes, size);
    to->size += size;
}

/* Add a type byte, then a big-endian number. */
static void add_number(struct packer *to, unsigned type, uint64_t number, size_t width)
{
    char bytes[9] = {(char)type};
    for (size_t i = width; i > 0; i--, number >>= 8)
        bytes[i] = (char)(number & 0xFF);
    add(to, bytes, width + 1);
}

/* Add a head. A size below `limit` is part of the type byte; a larger one follows it in 1, 2 or 4 bytes. */
static void add_head(struct packer *to, size_t size, unsigned fixed, size_t limit, unsigned one, unsigned two)
{
    if (size < limit)
        add_number(to, fixed | (unsigned)size, 0, 0);
    else if (one != 0 && size <= UINT8_MAX)
        add_number(to, one, size, 1);
    else if (size <= UINT16_MAX)
        add_number(to, two, size, 2);
    else
        add_number(to, two + 1, size, 4);
}

void pack_map(struct packer *to, size_t pairs)
{
    add_head(to, pairs, 0x80, 16, 0, 0xDE);
}

void pack_array(struct packer *to, size_t items)
{
    add_head(to, items, 0x90, 16, 0, 0xDC);
}

void pack_nil(struct packer *to)
{
    add_number(to, 0xC0, 0, 0);
}

void pack_boolean(struct packer *to, bool truth)
{
    add_number(to, truth ? 0xC3 : 0xC2, 0, 0);
}

void pack_count(struct packer *to, uint64_t count)
{
    if (count < 0x80)
        add_number(to, (unsigned)count, 0, 0);
    else if (count <= UINT8_MAX)
        add_number(to, 0xCC, count, 1);
    else if (count <= UINT16_MAX)
        add_number(to, 0xCD, count, 2);
    else if (count <= UINT32_MAX)
        add_number(to, 0xCE, count, 4);
    else
        add_number(to, 0xCF, count, 8);
}

void pack_string(struct packer *to, const char *string)
{
    size_t size = strlen(string);
    add_head(to, size, 0xA0, 32, 0xD9, 0xDA);
    add(to, string, size);
}

void pack_folded(struct packer *to, struct text bytes)
{
    size_t size = fold(bytes, NULL);
    add_head(to, size, 0xA0, 32, 0xD9, 0xDA);
    if (to->size + size <= to->room)
        fold(bytes, to->bytes + to->size);
    to->size += size;
}

void pack_bytes_head(struct packer *to, size_t size)
{
    add_head(to, size, 0, 0, 0xC4, 0xC5);
}
