/* MessagePack, as much of it as requests and answers are made of (wire/packed.py).

   Answers are read where they lie: `check_packed` says that the bytes are one value that can be read, and from then on
   nothing in it can go wrong. */
#ifndef FLUXBUDGET_PACKED_H
#define FLUXBUDGET_PACKED_H

#include "text.h"

enum kind { ABSENT = 0, NIL = 1, BOOLEAN = 2, INTEGER = 4, FLOAT = 8, TEXT = 16, ARRAY = 32, MAP = 64 };

struct value {
    enum kind kind;
    bool truth;         /* of a boolean; of an integer: it is below 0 */
    uint64_t magnitude; /* of an integer */
    double number;      /* of a float */
    struct text text;   /* of a text; of an array or a map: what lies from its first item on */
    uint32_t items;     /* of an array; of a map: pairs */
};

/* Say why the bytes are not one value of the kinds above; null when they are. `room` is for the words. */
const char *check_packed(struct text bytes, char room[64]);

/* Return the value of bytes that have been checked, and of a map's key: the last one of that name, or ABSENT. */
struct value read_packed(struct text bytes);
struct value field(const struct value *map, const char *key);

/* A request as it is built; beyond its room nothing is written, and only counted. */
struct packer {
    char *bytes;
    size_t room;
    size_t size;
};

void pack_map(struct packer *to, size_t pairs);
void pack_array(struct packer *to, size_t items);
void pack_nil(struct packer *to);
void pack_boolean(struct packer *to, bool truth);
void pack_count(struct packer *to, uint64_t count);
void pack_string(struct packer *to, const char *string);

/* Bytes as the protocol's text (`fold`). */
void pack_folded(struct packer *to, struct text bytes);

/* The head of bytes that are sent behind it. */
void pack_bytes_head(struct packer *to, size_t size);

#endif
