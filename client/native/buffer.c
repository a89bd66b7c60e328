#include "fluxbudgetctl.h"

#include <errno.h>
#include <string.h>
#include <time.h>

void put(struct buffer *to, const void *bytes, size_t size)
{
    if (to->is_full || size > to->room - to->size) {
        to->is_full = true;
        return;
    }
    memcpy(to->at + to->size, bytes, size);
    to->size += size;
}

void put_string(struct buffer *to, const char *string)
{
    put(to, string, strlen(string));
}

void put_decimal(struct buffer *to, uint64_t number)
{
    char digits[20], *at = digits + sizeof digits;
    do
        *--at = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    put(to, at, (size_t)(digits + sizeof digits - at));
}

int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * SECOND + at.tv_nsec;
}

bool wait_for(struct pollfd *files, nfds_t count, int64_t deadline)
{
    int ready;
    do {
        int64_t left = deadline > 0 ? deadline - now() : 0;
        if (left < 0)
            left = 0;
        ready = ppoll(files, count, &(struct timespec){left / SECOND, left % SECOND}, NULL);
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
}
