#include "text.h"

#include <stdio.h>
#include <string.h>

#include "printable.h"

enum { FOLDED = 0xEF00 };  /* a byte that is not UTF-8 becomes the character FOLDED + byte */

struct text text(const char *string)
{
    return (struct text){string, strlen(string)};
}

bool equals(struct text bytes, const char *string)
{
    return bytes.size == strlen(string) && memcmp(bytes.bytes, string, bytes.size) == 0;
}

size_t character(const char *at, const char *end, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)*at;
    if (first < 0x80) {
        *code = first;
        return 1;
    }
    size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || (size_t)(end - at) < size)
        return 0;
    uint32_t found = first & (0x7FU >> size);
    for (size_t i = 1; i < size; i++) {
        unsigned char next = (unsigned char)at[i];
        if ((next & 0xC0) != 0x80)
            return 0;
        found = found << 6 | (next & 0x3FU);
    }
    if (found < least[size] || found > 0x10FFFF || (found >= 0xD800 && found <= 0xDFFF))
        return 0;
    *code = found;
    return size;
}

bool is_utf8(struct text bytes)
{
    const char *at = bytes.bytes, *end = at + bytes.size;
    uint32_t code;
    while (at < end) {
        size_t size = character(at, end, &code);
        if (size == 0)
            return false;
        at += size;
    }
    return true;
}

size_t encode(uint32_t code, char *to)
{
    static const unsigned char marks[] = {0, 0, 0xC0, 0xE0, 0xF0};
    size_t size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = size; i-- > 1; code >>= 6)
        to[i] = (char)(0x80U | (code & 0x3FU));
    to[0] = (char)(marks[size] | code);
    return size;
}

bool is_printable(uint32_t code)
{
    /* `printable_boundaries` lists the code points at which the answer changes; it starts with "not printable" at 0. */
    size_t low = 0, high = sizeof printable_boundaries / sizeof printable_boundaries[0];
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (printable_boundaries[middle] <= code)
            low = middle;
        else
            high = middle;
    }
    return low % 2 == 1;
}

size_t fold(struct text bytes, char *to)
{
    const char *at = bytes.bytes, *end = at + bytes.size;
    size_t written = 0;
    while (at < end) {
        uint32_t code;
        size_t size = character(at, end, &code);
        bool kept = size > 0 && (code < FOLDED + 0x80 || code > FOLDED + 0xFF);
        size_t used = size > 0 ? size : 1;
        for (size_t i = 0; i < used; i++) {
            char folded[4];
            size_t length = kept ? 1 : encode(FOLDED + (unsigned char)at[i], folded);
            if (to != NULL)
                memcpy(to + written, kept ? at + i : folded, length);
            written += length;
        }
        at += used;
    }
    return written;
}

bool file_name(struct text name, char to[MOST_NAME + 1])
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
    size_t written = 0;
    for (size_t i = 0; i < name.size; i++) {
        char byte = name.bytes[i];
        bool kept = byte != '\0' && strchr(plain, byte) != NULL && (i > 0 || byte != '.');
        size_t length = kept ? 1 : 3;
        if (written + length > MOST_NAME)
            return false;
        if (kept)
            to[written] = byte;
        else
            snprintf(to + written, 4, "%%%02X", (unsigned)(unsigned char)byte);
        written += length;
    }
    to[written] = '\0';
    return written > 0;
}

void write_short(uint64_t count, char to[8])
{
    char digits[24];
    int size = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
    int power = (size - 1) / 3;
    int whole = size - 3 * power;
    if (power == 0)
        snprintf(to, 8, "%.3s", digits);
    else if (whole < 3 && digits[whole] != '0')
        snprintf(to, 8, "%.*s.%c%c", whole, digits, digits[whole], "kMGTPE"[power - 1]);
    else
        snprintf(to, 8, "%.*s%c", whole, digits, "kMGTPE"[power - 1]);
}
