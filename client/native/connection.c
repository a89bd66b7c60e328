#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "output.h"

enum { VERSION = 1, HEADER = 4, MAX_FRAME = 1 << 20 };

/* The pause between two attempts to connect while the daemon's backlog is full. */
static const double RETRY_SECONDS = 0.002;

/* Error code in an answer → exit code. All others: INTERNAL. */
static const struct {
    const char *code;
    int exit_code;
} error_codes[] = {
    {"no_run", NO_RUN},       {"bad_request", BAD_INPUT},   {"bad_input", BAD_INPUT},
    {"conflict", BAD_INPUT},  {"unavailable", UNREACHABLE}, {"busy", UNREACHABLE},
    {"too_large", BAD_INPUT}, {"forbidden", UNREACHABLE},   {"timeout", NO_ANSWER},
    {"bad_config", BAD_CONFIG},
};

struct exchange {
    const char *path;
    double seconds;
    double deadline;
    int peer;
    struct failure *failure;
};

static bool not_connected(const struct exchange *with, int error)
{
    unreachable(with->failure, with->path, strerror(error));
    /* Some sandboxes use the last two instead of the usual errors. */
    bool forbidden = error == EPERM || error == EACCES || error == EAFNOSUPPORT || error == ENOSYS;
    if (forbidden)
        set_hint(with->failure, "a sandbox may forbid sockets: run it outside, or check the socket's permissions");
    with->failure->no_socket = forbidden || error == ENOENT || error == ECONNREFUSED;
    return false;
}

static bool too_late(const struct exchange *with)
{
    return no_answer(with->failure, with->path, with->seconds);
}

static bool lost(const struct exchange *with)
{
    return unreachable(with->failure, with->path, strerror(errno));
}

static bool connect_to_daemon(struct exchange *with)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    with->peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (with->peer < 0)
        return not_connected(with, errno);
    if (strlen(with->path) >= sizeof address.sun_path)
        return unreachable(with->failure, with->path, "AF_UNIX path too long");
    strcpy(address.sun_path, with->path);
    for (;;) {
        double left = with->deadline - now();
        if (left <= 0)
            return too_late(with);
        if (connect(with->peer, (struct sockaddr *)&address, sizeof address) == 0)
            return true;
        if (errno != EAGAIN && errno != EINTR)
            return not_connected(with, errno);
        /* The backlog is full: connecting to a Unix socket fails then, where TCP would wait. */
        double pause = left < RETRY_SECONDS ? left : RETRY_SECONDS;
        nanosleep(&(struct timespec){0, (long)(pause * 1e9)}, NULL);
    }
}

static bool require_owner(const struct exchange *with)
{
    struct ucred owner;
    socklen_t size = sizeof owner;
    if (getsockopt(with->peer, SOL_SOCKET, SO_PEERCRED, &owner, &size) != 0)
        return lost(with);
    if (owner.uid == 0 || owner.uid == geteuid())
        return true;
    snprintf(with->failure->number, sizeof with->failure->number, "it is served by uid %lu, not by you",
             (unsigned long)owner.uid);
    return unreachable(with->failure, with->path, with->failure->number);
}

static bool send_all(const struct exchange *with, struct iovec *pieces, size_t count)
{
    while (count > 0) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
        ssize_t sent = sendmsg(with->peer, &message, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
            return true; /* refused before it was read; the answer says why */
        if (sent < 0 && errno == EAGAIN) {
            if (!wait_for(with->peer, POLLOUT, with->deadline))
                return too_late(with);
            continue;
        }
        if (sent < 0 && errno != EINTR)
            return lost(with);
        size_t left = sent < 0 ? 0 : (size_t)sent;
        for (; count > 0 && left >= pieces->iov_len; count--)
            left -= pieces++->iov_len;
        if (count > 0) {
            pieces->iov_base = (char *)pieces->iov_base + left;
            pieces->iov_len -= left;
        }
    }
    return true;
}

static bool receive(const struct exchange *with, struct text *body)
{
    static char frame[HEADER + MAX_FRAME];
    size_t got = 0, whole = sizeof frame;
    while (got < whole) {
        if (with->deadline - now() <= 0 || !wait_for(with->peer, POLLIN, with->deadline))
            return too_late(with);
        ssize_t size = recv(with->peer, frame + got, sizeof frame - got, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (size < 0)
            return lost(with);
        if (size == 0)
            return unreachable(with->failure, with->path, "the daemon closed the connection without an answer");
        got += (size_t)size;
        if (got < HEADER)
            continue;
        const unsigned char *head = (const unsigned char *)frame;
        size_t length = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
        if (length == 0 || length > MAX_FRAME) {
            snprintf(with->failure->number, sizeof with->failure->number,
                     "a frame of %zu bytes was announced; 1 to %d are allowed", length, MAX_FRAME);
            return not_understood(with->failure, with->failure->number);
        }
        whole = HEADER + length;
    }
    *body = (struct text){frame + HEADER, whole - HEADER};
    return true;
}

/* Fail with the `error` of an answer. */
static bool refused(struct failure *failure, struct value error)
{
    struct value code = field(&error, "code"), message = field(&error, "message"), hint = field(&error, "hint");
    fail(failure, INTERNAL, "");
    for (size_t i = 0; i < sizeof error_codes / sizeof error_codes[0]; i++)
        if (code.kind == TEXT && equals(code.text, error_codes[i].code))
            failure->exit_code = error_codes[i].exit_code;
    if (hint.kind == TEXT)
        failure->hint[0] = hint.text;
    return add_piece(failure, message.kind == TEXT ? message.text : text("the daemon failed"));
}

static bool exchange(struct exchange *with, struct iovec pieces[3], struct text *body)
{
    bool done = connect_to_daemon(with) && require_owner(with) && send_all(with, pieces, 3) && receive(with, body);
    if (with->peer >= 0)
        close(with->peer);
    return done;
}

bool ask(const struct request *request, double seconds, struct value *answer, struct failure *failure)
{
    static char head[HEADER + MAX_FRAME];
    char rest[64];
    struct packer to = {head, sizeof head, HEADER}, after = {rest, sizeof rest, 0};
    struct exchange with = {request->path, seconds, now() + seconds, -1, failure};
    size_t naming = request->options != NULL ? naming_pairs(request->options) : 0;
    pack_map(&to, 3 + naming + (request->input.bytes != NULL) + request->pairs);
    pack_string(&to, "v");
    pack_count(&to, VERSION);
    pack_string(&to, "op");
    pack_string(&to, request->op);
    pack_string(&to, "wait_ms");
    pack_count(&to, (uint64_t)(seconds * 1000));
    if (request->options != NULL)
        pack_naming(&to, request->options);
    if (request->input.bytes != NULL) {
        pack_string(&to, "input");
        pack_bytes_head(&to, request->input.size);
    }
    if (request->pack_rest != NULL)
        request->pack_rest(request->input.bytes != NULL ? &after : &to, request->context);
    size_t size = to.size - HEADER + request->input.size + after.size;
    if (size > MAX_FRAME) {
        snprintf(failure->number, sizeof failure->number, "a message has 1 to %d bytes, this one %zu", MAX_FRAME, size);
        fail(failure, BAD_INPUT, "shorten the arguments");
        add_string(failure, "the request is too large: ");
        return add_string(failure, failure->number);
    }
    for (int i = 0; i < HEADER; i++)
        head[i] = (char)(size >> 8 * (HEADER - 1 - i) & 0xFF);
    struct iovec pieces[3] = {
        {head, to.size}, {(void *)(uintptr_t)request->input.bytes, request->input.size}, {rest, after.size}};
    struct text body;
    if (!exchange(&with, pieces, &body))
        return false;
    const char *problem = check_packed(body, failure->number);
    if (problem != NULL)
        return not_understood(failure, problem);
    *answer = read_packed(body);
    if (answer->kind != MAP)
        return not_understood(failure, "it is not a map");
    struct value ok = field(answer, "ok");
    return ok.kind == BOOLEAN && ok.truth ? true : refused(failure, field(answer, "error"));
}
