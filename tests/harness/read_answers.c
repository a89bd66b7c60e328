/* Read many bodies of answers in one process: each on stdin after its size, and on stdout what `read_answer` says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fluxbudgetctl.h"

static void print(const char *name, struct bytes bytes)
{
    printf(" %s=", name);
    for (size_t i = 0; i < bytes.size; i++)
        printf("%02x", (unsigned char)bytes.at[i]);
}

int main(void)
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        /* In memory of its own size, so that the sanitizer sees a byte too many. */
        char *body = malloc(size);
        struct answer answer;
        memset(&answer, 0xFF, sizeof answer);
        if (body == NULL || fread(body, 1, size, stdin) != size)
            return 1;
        if (!read_answer((struct bytes){body, size}, &answer)) {
            printf("garbage");
        } else if (!answer.is_ok) {
            printf("error %.*s", (int)answer.error.size, answer.error.at);
        } else if (!answer.is_mine) {
            printf("other");
        } else {
            printf("exit=%d", answer.exit_code);
            print("out", answer.out);
            print("err", answer.err);
            print("exports", answer.exports);
        }
        printf("\n");
        free(body);
    }
    return 0;
}
