#include "output.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct output out = {.file = STDOUT_FILENO}, err = {.file = STDERR_FILENO};

double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

bool wait_for(int file, short events, double deadline)
{
    for (;;) {
        double left = deadline - now();
        if (left < 0)
            left = 0;
        time_t seconds = (time_t)left;
        struct timespec limit = {seconds, (long)((left - (double)seconds) * 1e9)};
        struct pollfd waiting = {.fd = file, .events = events};
        int ready = ppoll(&waiting, 1, &limit, NULL);
        if (ready > 0)
            return true;
        if (ready == 0 || errno != EINTR)
            return false;
    }
}

void flush(struct output *to)
{
    size_t written = 0;
    while (written < to->used && to->error == 0) {
        if (to->bounded && !wait_for(to->file, POLLOUT, to->deadline)) {
            to->error = ETIMEDOUT;
            break;
        }
        ssize_t size = write(to->file, to->bytes + written, to->used - written);
        if (size >= 0)
            written += (size_t)size;
        else if (errno != EINTR)
            to->error = errno;
    }
    to->used = 0;
}

void put(struct output *to, struct text bytes)
{
    while (bytes.size > 0) {
        if (to->used == sizeof to->bytes)
            flush(to);
        size_t room = sizeof to->bytes - to->used;
        size_t size = bytes.size < room ? bytes.size : room;
        memcpy(to->bytes + to->used, bytes.bytes, size);
        to->used += size;
        bytes.bytes += size;
        bytes.size -= size;
    }
}

void put_string(struct output *to, const char *string)
{
    put(to, text(string));
}

void put_integer(struct output *to, bool negative, uint64_t magnitude)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%s%llu", negative ? "-" : "", (unsigned long long)magnitude);
    put_string(to, digits);
}

/* Write the shortest `D.DDDe+XX` that reads back as the number, which is finite and not below 0. */
static void write_shortest(double number, char to[32])
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(to, 32, "%.*e", digits - 1, number);
        if (strtod(to, NULL) == number)
            return;
        /* Above a power of two, floats are farther apart than below, so the next higher digit may also round-trip. */
        char *last = strchr(to, 'e') - 1;
        if (*last < '9' && strtod(to, NULL) < number) {
            ++*last;
            if (strtod(to, NULL) == number)
                return;
        }
    }
}

void put_float(struct output *to, double number)
{
    if (!isfinite(number)) {
        put_string(to, isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity");
        return;
    }
    char shown[32], digits[32];
    write_shortest(fabs(number), shown);
    char *mark = strchr(shown, 'e');
    int exponent = atoi(mark + 1);
    int count = 0;
    for (const char *at = shown; at < mark; at++)
        if (*at != '.')
            digits[count++] = *at;
    while (count > 1 && digits[count - 1] == '0')
        count--;
    if (signbit(number))
        put_string(to, "-");
    if (exponent < -4 || exponent >= 16) {
        put(to, (struct text){digits, 1});
        if (count > 1) {
            put_string(to, ".");
            put(to, (struct text){digits + 1, (size_t)count - 1});
        }
        char written[16];
        snprintf(written, sizeof written, "e%+03d", exponent);
        put_string(to, written);
        return;
    }
    /* Python always writes a point and at least one digit after it. */
    for (int place = exponent < 0 ? 0 : exponent; place > exponent - count || place >= -1; place--) {
        if (place == -1)
            put_string(to, ".");
        int index = exponent - place;
        put(to, index >= 0 && index < count ? (struct text){digits + index, 1} : text("0"));
    }
}

/* Write the escape of a character that is not printable, with a NUL. */
static void write_out(uint32_t code, char to[16])
{
    if (code >= 0xEF80 && code <= 0xEFFF) /* stands for a byte that is not UTF-8 */
        snprintf(to, 16, "\\x%02x", (unsigned)(code - 0xEF00));
    else if (code == '\t' || code == '\n' || code == '\r')
        snprintf(to, 16, "\\%c", code == '\t' ? 't' : code == '\n' ? 'n' : 'r');
    else
        snprintf(to, 16, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)code);
}

/* Return the next piece of `one_line`, a character or its escape (in `room`), and move past the character. */
static struct text next_of_line(struct text *bytes, char room[16])
{
    uint32_t code;
    size_t size = character(bytes->bytes, bytes->bytes + bytes->size, &code);
    if (size == 0) {
        /* Not UTF-8: Python's os.fsdecode turns such a byte into a lone surrogate. */
        code = 0xDC00U + (unsigned char)*bytes->bytes;
        size = 1;
    }
    struct text found = {bytes->bytes, size};
    bytes->bytes += size;
    bytes->size -= size;
    if (is_printable(code))
        return found;
    write_out(code, room);
    return text(room);
}

void put_one_line(struct output *to, struct text bytes)
{
    char room[16];
    while (bytes.size > 0)
        put(to, next_of_line(&bytes, room));
}

void put_json(struct output *to, struct text utf8)
{
    static const char special[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    const char *at = utf8.bytes, *end = at + utf8.size;
    while (at < end) {
        uint32_t code;
        size_t size = character(at, end, &code);
        char written[16];
        const char *found = code != 0 && code < 0x80 ? strchr(special, (int)code) : NULL;
        if (found != NULL)
            snprintf(written, sizeof written, "\\%c", letters[found - special]);
        else if (code >= 0x20 && code < 0x7F)
            snprintf(written, sizeof written, "%c", (int)code);
        else if (code < 0x10000)
            snprintf(written, sizeof written, "\\u%04x", (unsigned)code);
        else
            snprintf(written, sizeof written, "\\u%04x\\u%04x", (unsigned)(0xD800 + ((code - 0x10000) >> 10)),
                     (unsigned)(0xDC00 + ((code - 0x10000) & 0x3FF)));
        put_string(to, written);
        at += size;
    }
}

void put_json_one_line(struct output *to, struct text bytes)
{
    char room[16];
    while (bytes.size > 0)
        put_json(to, next_of_line(&bytes, room));
}
