/* What the files of the native client share. fluxbudgetctl.c says what the program does. */
#ifndef FLUXBUDGETCTL_H
#define FLUXBUDGETCTL_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Sizes in bytes. At most MAX_INPUT of stdin is sent; the daemon is told if there was more. */
enum { HEADER = 4, MAX_FRAME = 1 << 20, MAX_INPUT = 256 * 1024, CHUNK = 64 * 1024 };

/* All times are nanoseconds of CLOCK_MONOTONIC. */
#define SECOND INT64_C(1000000000)

struct verb {
    const char *name;
    int64_t limit;   /* the usual time limit */
    bool is_claudes; /* Claude Code runs it: stdin is forwarded, and the deadline also covers the output */
    bool is_hook;    /* it never disturbs the session */
};

/* The large arrays. A page that is touched for the first time costs more than a system call, so short requests and
   answers lie together, and all of it after libc's variables (fluxbudgetctl.c). */
extern struct memory {
    char frames[2 * (HEADER + MAX_FRAME)]; /* the frame being sent, followed by the answer */
    char input[MAX_INPUT + CHUNK];         /* stdin, as far as it has been read */
} memory;

/* How much of stdin has been read. */
struct input {
    size_t size;  /* at most MAX_INPUT */
    bool is_open; /* there may be more */
    bool is_cut;  /* there was more; Python gets one byte too many, so that it notices */
};

struct call {
    char **words;            /* the verb and what follows, up to a null */
    const struct verb *verb; /* null: not one of the piped verbs */
    bool has_more;           /* there are words other than the verb and `--timeout` */
    int64_t started, deadline;
    struct sockaddr_un place; /* where the daemon usually listens */
    /* What failed, for Python as $FLUXBUDGETCTL_FAILED: `connect ERRNO`, `uid UID`, `send ERRNO`,
       `closed`, `garbage`, `error CODE`, `timeout`. Empty if nothing failed. */
    char failed[128];
    struct input input;
};

struct bytes {
    const char *at;
    size_t size;
};

struct answer {
    bool is_ok, is_mine; /* not ok: an error; not mine: the daemon does not handle this command line */
    int exit_code;
    struct bytes out, err, exports;
    struct bytes error; /* the error's code */
};

/* buffer.c: a string or a frame under construction. Nothing is written beyond `room`. */
struct buffer {
    char *at;
    size_t size, room;
    bool is_full; /* something did not fit */
};
void put(struct buffer *to, const void *bytes, size_t size);
void put_string(struct buffer *to, const char *string);
void put_decimal(struct buffer *to, uint64_t number);

/* buffer.c: time. `wait_for` returns false if no file is ready at the deadline (0: now). */
int64_t now(void);
bool wait_for(struct pollfd *files, nfds_t count, int64_t deadline);

/* place.c: environment variables (null if unset or empty), and where the daemon listens. `usual_place` returns false if
   Python must find the place; `recorded_place` returns false if the lock file names no other place. `is_any_marker`
   returns true if the daemon has left a marker beside one of these sockets: a run with an exhausted hard limit. */
const char *variable(const char *name);
bool usual_place(struct sockaddr_un *place);
bool recorded_place(const struct sockaddr_un *usual, struct sockaddr_un *recorded);
bool is_any_marker(const struct sockaddr_un *usual);

/* request.c: make a frame, which is too large if the buffer is full. `rest` is the part of stdin not sent so far: the
   last field, which the caller sends after what is in the buffer. */
void pack_command(struct buffer *to, const struct call *call, struct bytes rest, bool more, bool cut);
void pack_stdin(struct buffer *to, struct bytes rest, bool more, bool cut);

/* answer.c: read the body of a frame; return false unless it is complete and correct. */
bool read_answer(struct bytes body, struct answer *answer);

/* pipe.c: ask the daemon; return true if it has answered, else set `failed`. `read_input` reads from stdin once; call
   it when stdin is ready. */
bool ask(struct call *call, struct answer *answer);
void read_input(struct input *input);

/* output.c: write an answer to $CLAUDE_ENV_FILE, stdout and stderr, and return the exit code. `complain` writes a line
   to stderr, and a hint unless it is null. */
enum { INTERNAL = 70, NO_ANSWER = 75 }; /* the exit codes that do not come from the daemon (wire/codes.py) */
int write_answer(const struct call *call, const struct answer *answer);
void complain(const struct call *call, const char *what, const char *why, const char *hint);

#endif
