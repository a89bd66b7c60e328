/* Text: UTF-8 that has been checked, and other people's bytes as the protocol's text (fluxbudgetd/wire/text.py). */
#ifndef FLUXBUDGET_TEXT_H
#define FLUXBUDGET_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that belong to somebody else; NUL is a byte like any other. */
struct text {
    const char *bytes;
    size_t size;
};

struct text text(const char *string);
bool equals(struct text one, const char *other);

/* Return the length of the UTF-8 character at `at`, and which one it is; 0 when there is none. */
size_t character(const char *at, const char *end, uint32_t *code);
bool is_utf8(struct text bytes);

/* Write a character as UTF-8; return its length, 4 at most. */
size_t encode(uint32_t code, char *to);

/* Tell whether Python calls it printable: the rule by which `one_line` (failure.py) writes characters out. */
bool is_printable(uint32_t code);

/* Write the bytes as the protocol's text; `to` null: nothing. Return the length, three times the bytes' at most. */
size_t fold(struct text bytes, char *to);

/* Write what the state file of a name is called (wire/state_names.py), with a NUL; false when there is none of it. */
enum { MOST_NAME = 200 };
bool file_name(struct text name, char to[MOST_NAME + 1]);

/* Write a count in at most three digits, rounded down (wire/short.py), with a NUL. */
void write_short(uint64_t count, char to[8]);

#endif
