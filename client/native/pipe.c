#include "fluxbudgetctl.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Set `failed` to the kind of a failure, and a number unless it is 0; return false. */
static bool fail(struct call *call, const char *kind, unsigned number)
{
    struct buffer to = {call->failed, 0, sizeof call->failed - 1, false};
    put_string(&to, kind);
    if (number > 0) {
        put_string(&to, " ");
        put_decimal(&to, number);
    }
    return false;
}

/* Connect; return 0 or the error, which is ETIMEDOUT at the deadline. */
static int connect_to(int peer, const struct sockaddr_un *place, int64_t deadline)
{
    while (connect(peer, (const struct sockaddr *)place, sizeof *place) != 0) {
        if (errno != EAGAIN && errno != EINTR)
            return errno;
        /* The backlog is full. A non-blocking connect to a Unix socket then fails at once, so try again. */
        if (now() >= deadline)
            return ETIMEDOUT;
        poll(NULL, 0, 1);
    }
    return 0;
}

static bool connect_to_daemon(int peer, struct call *call)
{
    struct sockaddr_un recorded;
    struct ucred owner;
    socklen_t size = sizeof owner;
    int error = peer < 0 ? errno : connect_to(peer, &call->place, call->deadline);
    if ((error == ENOENT || error == ECONNREFUSED) && recorded_place(&call->place, &recorded) &&
        connect_to(peer, &recorded, call->deadline) == 0)
        error = 0;
    if (error == 0 && getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &owner, &size) != 0)
        error = errno;
    if (error != 0)
        return error == ETIMEDOUT ? fail(call, "timeout", 0) : fail(call, "connect", (unsigned)error);
    return owner.uid == 0 || owner.uid == geteuid() || fail(call, "uid", owner.uid);
}

void read_input(struct input *input)
{
    ssize_t size = read(STDIN_FILENO, memory.input + input->size, CHUNK);
    if (size > 0)
        input->size += (size_t)size;
    else if (size == 0 || (errno != EINTR && errno != EAGAIN))
        input->is_open = false; /* an unreadable stdin counts as empty */
    if (input->size > MAX_INPUT) {
        input->size = MAX_INPUT;
        input->is_cut = true;
    }
}

/* Read what stdin holds already. A terminal counts as empty. */
static void begin_input(struct input *input, const struct verb *verb)
{
    enum { READS = 8 }; /* enough for MAX_INPUT; limited, so that a writer of small pieces cannot delay the request */
    struct pollfd ready = {STDIN_FILENO, POLLIN, 0};
    input->is_open = verb->is_claudes && !isatty(STDIN_FILENO);
    for (int i = 0; i < READS && input->is_open && !input->is_cut && wait_for(&ready, 1, 0); i++)
        read_input(input);
}

/* The frame being sent: what is left of its buffer and of the part of stdin that follows. */
struct sender {
    struct buffer frame;
    struct iovec left[2];
    size_t framed; /* how much of stdin has been put into frames */
    bool more;     /* the last frame says that others follow */
};

/* Make the first frame, or one with what was read since the last frame. (That is shorter than the first one, so it does
   not reach the answer after it.) */
static void make_frame(struct sender *sender, const struct call *call)
{
    const struct input *input = &call->input;
    char *start = memory.input + sender->framed;
    struct bytes rest = {start, input->size - sender->framed};
    bool cut = input->is_cut && !input->is_open;
    if (sender->frame.size == 0)
        pack_command(&sender->frame, call, rest, input->is_open, cut);
    else
        pack_stdin(&sender->frame, rest, input->is_open, cut);
    sender->left[0] = (struct iovec){sender->frame.at, sender->frame.size};
    sender->left[1] = (struct iovec){start, rest.size};
    sender->framed = input->size;
    sender->more = input->is_open;
}

static bool is_sent(const struct sender *sender)
{
    return sender->left[0].iov_len + sender->left[1].iov_len == 0;
}

static void note_sent(struct sender *sender, size_t size)
{
    for (struct iovec *piece = sender->left; size > 0; piece++) {
        size_t sent = size < piece->iov_len ? size : piece->iov_len;
        *piece = (struct iovec){(char *)piece->iov_base + sent, piece->iov_len - sent};
        size -= sent;
    }
}

/* Send as much of the frame as the socket takes; return 0 or the error. */
static int send_some(int peer, struct sender *sender)
{
    const struct msghdr message = {.msg_iov = sender->left, .msg_iovlen = 2};
    while (!is_sent(sender)) {
        ssize_t size = sendmsg(peer, &message, MSG_NOSIGNAL);
        if (size >= 0) {
            note_sent(sender, (size_t)size);
        } else if (errno == EPIPE || errno == ECONNRESET) {
            /* The daemon has stopped reading. Its answer may say why. */
            sender->left[0].iov_len = sender->left[1].iov_len = 0;
            sender->more = false;
        } else if (errno != EINTR) {
            return errno == EAGAIN ? 0 : errno;
        }
    }
    return 0;
}

/* The answer's frame, as far as it has arrived. `body` is null until it is complete. */
struct receiver {
    char *frame; /* has room for the largest one */
    size_t size;
    struct bytes body;
};

static bool receive_some(int peer, struct call *call, struct receiver *receiver)
{
    const unsigned char *head = (const unsigned char *)receiver->frame;
    ssize_t size = recv(peer, receiver->frame + receiver->size, HEADER + MAX_FRAME - receiver->size, 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (size <= 0)
        return fail(call, "closed", 0);
    receiver->size += (size_t)size;
    if (receiver->size < HEADER)
        return true;
    size_t length = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
    if (length == 0 || length > MAX_FRAME)
        return fail(call, "garbage", 0);
    if (receiver->size >= HEADER + length)
        receiver->body = (struct bytes){receiver->frame + HEADER, length};
    return true;
}

/* Send what has been read while waiting for the answer and for more of stdin. */
static bool wait_for_answer(int peer, struct call *call, struct sender *sender, struct receiver *receiver)
{
    struct input *input = &call->input;
    while (receiver->body.at == NULL) {
        bool is_late = now() >= call->deadline; /* one more try: an answer that has arrived in time is used */
        int error = send_some(peer, sender);
        if (error != 0)
            return fail(call, "send", (unsigned)error);
        if (is_sent(sender) && sender->more && (input->size > sender->framed || !input->is_open)) {
            make_frame(sender, call);
            continue;
        }
        short wanted = is_sent(sender) ? POLLIN : POLLIN | POLLOUT;
        struct pollfd files[] = {{peer, wanted, 0}, {input->is_open ? STDIN_FILENO : -1, POLLIN, 0}};
        wait_for(files, 2, call->deadline);
        if (files[1].revents != 0)
            read_input(input);
        if ((files[0].revents & ~POLLOUT) != 0 && !receive_some(peer, call, receiver))
            return false;
        if (is_late && receiver->body.at == NULL)
            return fail(call, "timeout", 0);
    }
    return true;
}

static bool exchange(int peer, struct call *call, struct answer *answer)
{
    struct sender sender = {.frame = {memory.frames, 0, HEADER + MAX_FRAME, false}};
    if (!connect_to_daemon(peer, call))
        return false;
    begin_input(&call->input, call->verb);
    make_frame(&sender, call);
    answer->is_mine = false; /* for a request that is too large, which Python reports */
    if (sender.frame.is_full)
        return true;
    struct receiver receiver = {.frame = memory.frames + sender.frame.size};
    if (!wait_for_answer(peer, call, &sender, &receiver))
        return false;
    if (!read_answer(receiver.body, answer))
        return fail(call, "garbage", 0);
    if (!answer->is_ok) {
        fail(call, "error ", 0);
        strncat(call->failed, answer->error.at, answer->error.size);
    }
    return answer->is_ok;
}

bool ask(struct call *call, struct answer *answer)
{
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool is_answered = exchange(peer, call, answer);
    if (peer >= 0)
        close(peer);
    return is_answered;
}
