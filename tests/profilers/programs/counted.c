/* A single thread that does the same, and prints the same, every time: its instructions can be
 * counted. With arguments: `fork` does a part of it in a child, `serve` goes on until it is ended.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile unsigned long sum;

__attribute__((noipa)) static void first(long times) {
    for (long i = 0; i < times; i++) sum += i;
}
__attribute__((noipa)) static void second(long times) {
    for (long i = 0; i < times; i++) sum ^= i;
}
__attribute__((noipa)) static unsigned long fibonacci(int n) {
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
__attribute__((noipa)) static void middle(void) {
    first(300000);
    sum += fibonacci(15);
}

int main(int count, char **given) {
    const char *what = count > 1 ? given[1] : "";
    middle();
    if (!strcmp(what, "fork")) {
        if (fork() == 0) { second(50000); _exit(0); }
        wait(0);
    }
    second(100000);
    puts("done");
    fflush(stdout);
    while (!strcmp(what, "serve")) second(1000);
    return !strcmp(what, "fail") ? 7 : 0;
}
