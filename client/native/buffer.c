#include "fluxbudgetctl.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
#if LONG_MAX > INT32_MAX
    /* libc would call the vDSO, whose two pages cost more than a few system calls. (On 32 bits, `at` may be wider.) */
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &at);
#else
    clock_gettime(CLOCK_MONOTONIC, &at);
#endif
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
