/* The minimum of a client: connect to the socket argv[1], send a small frame, print the answer. */
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    static const char frame[64] = {0, 0, 0, 60};
    static char answer[4096];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count < 2 || strlen(arguments[1]) >= sizeof address.sun_path)
        return 64;
    strcpy(address.sun_path, arguments[1]);
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0)
        return 69;
    if (write(peer, frame, sizeof frame) != (ssize_t)sizeof frame)
        return 69;
    ssize_t size = read(peer, answer, sizeof answer);
    return size > 0 && write(STDOUT_FILENO, answer, (size_t)size) == size ? 0 : 70;
}
