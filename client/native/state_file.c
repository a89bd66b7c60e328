#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "account.h"
#include "output.h"

enum { LARGEST = 64 * 1024, MOST_DIGITS = 19 };

enum { AS_OF = SPEND_FIELDS, RUN, PHASE, KEYS };

/* Null: not in the file, so nil in the answer. */
static const char *const keys[KEYS] = {
    [BUDGET] = "budget", [SPENT] = "spent", [RESERVED] = "reserved", [REMAINING] = "remaining", [PCT] = "pct",
    [STATE] = "state",   [STALE] = "stale", [AS_OF] = "as_of",       [RUN] = "run",             [PHASE] = "phase",
};

static const char *const states[] = {"ok", "warning", "exceeded", "unlimited"};

static bool is_digits(struct text digits)
{
    for (size_t i = 0; i < digits.size; i++)
        if (digits.bytes[i] < '0' || digits.bytes[i] > '9')
            return false;
    return digits.size > 0 && digits.size <= MOST_DIGITS;
}

static bool read_number(struct text digits, struct value *number)
{
    *number = (struct value){.kind = INTEGER};
    for (size_t i = 0; i < digits.size && i < MOST_DIGITS; i++)
        number->magnitude = number->magnitude * 10 + (unsigned char)(digits.bytes[i] - '0');
    return is_digits(digits) && number->magnitude <= INT64_MAX;
}

static bool read_share(struct text share, struct value *number)
{
    char written[MOST_DIGITS + 1] = "", digits[MOST_DIGITS + 1] = "";
    if (share.size > MOST_DIGITS)
        return false;
    memcpy(written, share.bytes, share.size);
    memcpy(digits, share.bytes, share.size);
    char *point = memchr(digits, '.', share.size);
    if (point != NULL)
        memmove(point, point + 1, share.size - (size_t)(point - digits));
    *number = (struct value){.kind = FLOAT, .number = strtod(written, NULL)};
    return is_digits((struct text){digits, share.size - (point != NULL)});
}

/* Read the lines `key=value`. The last line with a key counts; other lines are ignored. */
static void take_lines(struct text content, struct text found[KEYS])
{
    while (content.bytes != NULL) {
        const char *end = memchr(content.bytes, '\n', content.size);
        struct text line = {content.bytes, end != NULL ? (size_t)(end - content.bytes) : content.size};
        const char *equal = memchr(line.bytes, '=', line.size);
        for (int i = 0; i < KEYS && equal != NULL; i++)
            if (keys[i] != NULL && equals((struct text){line.bytes, (size_t)(equal - line.bytes)}, keys[i]))
                found[i] = (struct text){equal + 1, line.size - (size_t)(equal + 1 - line.bytes)};
        content = end != NULL ? (struct text){end + 1, content.size - line.size - 1} : (struct text){NULL, 0};
    }
}

static bool read_state(struct text content, struct state *state)
{
    struct text found[KEYS] = {{NULL, 0}};
    struct value *spend = state->account.spend;
    take_lines(content, found);
    for (int i = 0; i < KEYS; i++)
        if (keys[i] != NULL && found[i].bytes == NULL)
            return false;
    bool known = false;
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        known = known || equals(found[STATE], states[i]);
    bool unlimited = equals(found[STATE], "unlimited"), stale = equals(found[STALE], "1");
    if (!known || found[RUN].size == 0 || found[AS_OF].size == 0 || (!stale && !equals(found[STALE], "0")))
        return false;
    for (int i = 0; i < SPEND_FIELDS; i++)
        spend[i] = (struct value){.kind = NIL};
    static const enum spend limits[] = {BUDGET, REMAINING, PCT};
    for (size_t i = 0; i < 3; i++) {
        struct text limit = found[limits[i]];
        if ((limit.size == 0) != unlimited)
            return false;
        if (!unlimited && !(limits[i] == PCT ? read_share : read_number)(limit, &spend[limits[i]]))
            return false;
    }
    if (!read_number(found[SPENT], &spend[SPENT]) || !read_number(found[RESERVED], &spend[RESERVED]))
        return false;
    spend[STATE] = (struct value){.kind = TEXT, .text = found[STATE]};
    spend[STALE] = (struct value){.kind = BOOLEAN, .truth = stale};
    if (stale)
        spend[STALE_WHY] = (struct value){
            .kind = TEXT, .text = text("the state file says so ('fluxbudgetctl doctor' has the reason)")};
    state->account.run = (struct value){.kind = TEXT, .text = found[RUN]};
    state->account.phase = (struct value){.kind = TEXT, .text = found[PHASE]};
    state->as_of = found[AS_OF];
    return true;
}

static bool is_trusted(const struct stat *about)
{
    return about->st_uid == 0 || about->st_uid == geteuid();
}

/* Open the directory of the state files, beside the socket. All later steps use this descriptor, even if the directory
   is replaced meanwhile. Return -1 unless only this user and root can create files there. */
static int open_directory(const char *socket)
{
    static char path[256 * 1024];
    const char *slash = strrchr(socket, '/');
    size_t size = slash == NULL ? 0 : (size_t)(slash + 1 - socket);
    if (size + sizeof "state" > sizeof path)
        return -1;
    memcpy(path, socket, size);
    strcpy(path + size, "state");
    int directory = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat about;
    if (directory < 0)
        return -1;
    if (fstat(directory, &about) == 0 && is_trusted(&about) && (about.st_mode & (S_IWGRP | S_IWOTH)) == 0)
        return directory;
    close(directory);
    return -1;
}

/* Open a file in the directory. O_NONBLOCK: the path may lead to a FIFO. */
static int open_below(int directory, const char *name)
{
    return openat(directory, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

static bool read_file(int directory, const char *kind, struct text name, struct state *state)
{
    static char content[LARGEST + 1];
    char path[16 + MOST_NAME], called[MOST_NAME + 1];
    if (!file_name(name, called))
        return false;
    snprintf(path, sizeof path, "%s/%s", kind, called);
    int file = open_below(directory, path);
    if (file < 0)
        return false;
    struct stat about;
    ssize_t size = -1;
    if (fstat(file, &about) == 0 && S_ISREG(about.st_mode) && is_trusted(&about))
        size = read(file, content, sizeof content);
    close(file);
    struct text all = {content, (size_t)size};
    return size >= 0 && size <= LARGEST && is_utf8(all) && read_state(all, state);
}

/* True if a daemon holds its lock. (A daemon that meets a reader's momentary lock tries again.) */
static bool is_alive(int directory)
{
    int file = open_below(directory, "alive");
    if (file < 0)
        return false;
    struct stat about;
    bool held = fstat(file, &about) == 0 && is_trusted(&about) && flock(file, LOCK_SH | LOCK_NB) != 0 &&
                errno == EWOULDBLOCK;
    close(file);
    return held;
}

bool find_state(const struct options *options, const char *socket, struct text session, struct state *found,
             struct failure *failure)
{
    const char *kinds[MOST_PLACES];
    struct text names[MOST_PLACES];
    size_t count = state_places(options, session, kinds, names);
    int directory = open_directory(socket);
    if (directory < 0)
        return false;
    bool is_there = false;
    for (size_t i = 0; i < count && !is_there; i++)
        is_there = read_file(directory, kinds[i], names[i], found);
    bool alive = is_alive(directory);
    close(directory);
    if (is_there && alive) {
        begin_line("fluxbudgetctl: from the state file, as of ");
        put_one_line(&err, found->as_of);
        put_string(&err, ": ");
        for (size_t i = 0; i < failure->count; i++)
            put_one_line(&err, failure->pieces[i]);
        end_line();
        return true;
    }
    if (is_there) {
        add_string(failure, "; the daemon is gone; its last state of run ");
        add_piece(failure, found->account.run.text);
        add_string(failure, " is from ");
        add_piece(failure, found->as_of);
        set_hint(failure, "start it with 'fluxbudgetd'");
    } else if (alive) {
        add_string(failure, "; no state file describes the run");
        if (options->run == NULL && options->scope == NULL && options->session == NULL)
            set_hint(failure, "name the run: --run ID");
    }
    return false;
}
