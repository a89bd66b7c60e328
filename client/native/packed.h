/* The part of MessagePack that requests and answers use (wire/packed.py).

   Answers are read in place. Once `check_packed` has accepted the bytes, reading cannot fail. */
#ifndef FLUXBUDGET_PACKED_H
#define FLUXBUDGET_PACKED_H

#include "text.h"

enum kind { ABSENT = 0, NIL = 1, BOOLEAN = 2, INTEGER = 4, FLOAT = 8, TEXT = 16, ARRAY = 32, MAP = 64 };

struct value {
    enum kind kind;
    bool truth;         /* of a boolean */
    bool negative;      /* of an integer */
    uint64_t magnitude; /* of an integer */
    double number;      /* of a float */
    struct text text;   /* of a text; of an array or a map: the bytes from its first item on */
    uint32_t items;     /* of an array; of a map: its pairs */
};

/* Return why the bytes are not one value of the kinds above; null if they are. `room` is for the message. */
const char *check_packed(struct text bytes, char room[64]);

/* Return the value of checked bytes. */
struct value read_packed(struct text bytes);

/* Return the last value of a key, or ABSENT. */
struct value field(const struct value *map, const char *key);

/* A request under construction. Bytes that exceed `room` are counted, but not written. */
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

/* Pack bytes as the protocol's text (`fold`). */
void pack_folded(struct packer *to, struct text bytes);

/* Pack the head of a byte string; its bytes are sent separately. */
void pack_bytes_head(struct packer *to, size_t size);

#endif
