/* Text: checking UTF-8, and making the protocol's text from any bytes (fluxbudgetd/wire/text.py). */
#ifndef FLUXBUDGET_TEXT_H
#define FLUXBUDGET_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes owned by others. They may contain NUL. */
struct text {
    const char *bytes;
    size_t size;
};

struct text text(const char *string);
bool equals(struct text bytes, const char *string);

/* Return the length of the UTF-8 character at `at`, and its code point; 0 if the bytes are not UTF-8. */
size_t character(const char *at, const char *end, uint32_t *code);
bool is_utf8(struct text bytes);

/* Write a character as UTF-8; return its length, 4 at most. */
size_t encode(uint32_t code, char *to);

/* True if Python calls the character printable, which decides what `one_line` (failure.py) escapes. */
bool is_printable(uint32_t code);

/* Write the bytes as the protocol's text, unless `to` is null. Return its length, at most three times the input's. */
size_t fold(struct text bytes, char *to);

/* Write the file name of the state file for a name (wire/state_names.py), with a NUL; false if it cannot have one. */
enum { MOST_NAME = 200 };
bool file_name(struct text name, char to[MOST_NAME + 1]);

/* Write a count with at most three digits, rounded down (wire/short.py), with a NUL. */
void write_short(uint64_t count, char to[8]);

#endif
