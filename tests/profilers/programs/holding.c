/* Holds known amounts of memory, and passes some on: 20,000 blocks of 2 KiB and a tenth of that on
 * another path are held; 50,000 of 4 KiB are freed again at once. `free` frees all of it before the
 * end, `serve` waits for TERM, without a handler.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCKS = 20000 };
static char *held[BLOCKS + BLOCKS / 10];

__attribute__((noipa)) static void hold_much(void) {
    for (int i = 0; i < BLOCKS; i++) memset(held[i] = malloc(2048), 1, 2048);
}
__attribute__((noipa)) static void hold_little(void) {
    for (int i = BLOCKS; i < BLOCKS + BLOCKS / 10; i++) memset(held[i] = malloc(2048), 1, 2048);
}
__attribute__((noipa)) static void pass_on(void) {
    for (int i = 0; i < 50000; i++) {
        char *block = malloc(4096);
        block[0] = 1;
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
}

int main(int count, char **given) {
    const char *what = count > 1 ? given[1] : "";
    hold_much();
    hold_little();
    pass_on();
    puts("held");
    fflush(stdout);
    if (!strcmp(what, "serve")) pause();
    if (!strcmp(what, "free")) for (int i = 0; i < BLOCKS + BLOCKS / 10; i++) free(held[i]);
    return 0;
}
