/* The minimum of a server: on the socket argv[1], accept, read once, send it back, close. */
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    static char data[65536];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count < 2 || strlen(arguments[1]) >= sizeof address.sun_path)
        return 64;
    strcpy(address.sun_path, arguments[1]);
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) != 0 || listen(listening, 128) != 0)
        return 69;
    for (;;) {
        int peer = accept(listening, NULL, NULL);
        ssize_t size = read(peer, data, sizeof data);
        if (size > 0 && write(peer, data, (size_t)size) != size)
            return 70;
        close(peer);
    }
}
