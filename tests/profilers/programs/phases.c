/* A program whose profile is known: it goes through four phases and counts its own waiting.
 *
 *     phases [compute=N] [lock=N] [io=N] [sleep=N] [work=N] [times=N] [seconds=N] [pin=1]
 *            [file=PATH]
 *
 * compute: N rounds, two threads with a barrier after each. `critical` does twice (or `times`) the
 *     work of `irrelevant`, in parallel: making critical faster by a share s makes the phase faster
 *     by min(s, 1 - 1/times), making irrelevant faster changes nothing. Where the other thread
 *     waits at the barrier, it waits for a lock (a futex).
 * lock: two threads, N turns each, of `critical_section` under one mutex, and a quarter of that
 *     outside of it: one of the two nearly always waits.
 * io: N writes of 64 KiB past the page cache, or with fsync where the file system has no O_DIRECT.
 *     To make the file and to remove it counts as two more.
 * sleep: N sleeps of a millisecond.
 * work: what `irrelevant` does in a round, in thousands of steps; the number of steps is fixed, so
 *     that instructions can be counted.
 * seconds: how long compute lasts, however many rounds that are.
 * pin: each of the two threads has a CPU of its own, so that no scheduler lets them share one.
 *
 * All the while one more thread waits for the end, as those of an idle pool do.
 *
 * It prints key=value lines: for each kind of waiting the time off the CPU in ns (wall time of the
 * call less the CPU time of its thread) and how often it waited; the CPU and wall time of all.
 * With -DWITH_COZ every round, turn, write and sleep is a progress point.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_COZ
#include <coz.h>
#else
#define COZ_PROGRESS_NAMED(name)
#endif

enum { BLOCK = 64 << 10, BLOCKS = 64 };

struct waited { uint64_t ns, times; };
struct clocks { uint64_t wall, cpu; };

static long rounds, turns, writes, sleeps, work = 400, times = 2, seconds, pin;
static const char *path = "phases.data";
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, end_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t end = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static int ended;

static uint64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static struct clocks begin(void) {
    return (struct clocks){now(CLOCK_MONOTONIC), now(CLOCK_THREAD_CPUTIME_ID)};
}

static void waited(struct waited *sum, struct clocks since) {
    uint64_t wall = now(CLOCK_MONOTONIC) - since.wall;
    uint64_t cpu = now(CLOCK_THREAD_CPUTIME_ID) - since.cpu;
    sum->ns += wall > cpu ? wall - cpu : 0;
    sum->times++;
}

/* A macro, so that the work is on the line that it is used in; other shifts each, so that the
 * compiler does not make one function of all. */
#define STEP(x, a, b, c) (x ^= x << a, x ^= x >> b, x ^= x << c)

__attribute__((noinline)) uint64_t critical(long steps, uint64_t x) {
    for (long i = 0; i < steps; i++) STEP(x, 13, 7, 17); /* the critical line */
    return x;
}
__attribute__((noinline)) uint64_t irrelevant(long steps, uint64_t x) {
    for (long i = 0; i < steps; i++) STEP(x, 12, 25, 27); /* the irrelevant line */
    return x;
}
__attribute__((noinline)) uint64_t critical_section(long steps, uint64_t x) {
    for (long i = 0; i < steps; i++) STEP(x, 7, 9, 8); /* the line under the lock */
    return x;
}
__attribute__((noinline)) uint64_t outside(long steps, uint64_t x) {
    for (long i = 0; i < steps; i++) STEP(x, 11, 31, 18);
    return x;
}

struct thread { pthread_t id; int first; uint64_t x; struct waited barrier, lock; };

__attribute__((noinline)) static void wait_at_barrier(struct thread *self) {
    struct clocks since = begin();
    pthread_barrier_wait(&barrier);
    waited(&self->barrier, since);
}

static void compute_phase(struct thread *self) {
    uint64_t over = now(CLOCK_MONOTONIC) + seconds * 1000000000ull;
    for (long i = 0; i < rounds; i++) {
        if (self->first) self->x = critical(times * 1000 * work, self->x);
        else self->x = irrelevant(1000 * work, self->x);
        /* This round is the last one, also for the other thread, which reads it in this round at
         * the earliest, when it may have been set for the next round already. */
        if (self->first && seconds && now(CLOCK_MONOTONIC) >= over) rounds = i + 1;
        wait_at_barrier(self);
        if (self->first) { COZ_PROGRESS_NAMED("round"); }
    }
}

__attribute__((noinline)) static void take_lock(struct thread *self) {
    if (pthread_mutex_trylock(&mutex) == 0) return;
    struct clocks since = begin();
    pthread_mutex_lock(&mutex);
    waited(&self->lock, since);
}

static void lock_phase(struct thread *self) {
    for (long i = 0; i < turns; i++) {
        take_lock(self);
        self->x = critical_section(1000 * work, self->x);
        pthread_mutex_unlock(&mutex);
        self->x = outside(250 * work, self->x);
        COZ_PROGRESS_NAMED("turn");
    }
}

/* The first thread gets the first CPU that is allowed, the other one the second. */
static void pin_thread(const struct thread *self) {
    cpu_set_t allowed, one;
    int skip = !self->first;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || skip--) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        return;
    }
}

static void *both_phases(void *argument) {
    struct thread *self = argument;
    if (pin) pin_thread(self);
    compute_phase(self);
    lock_phase(self);
    return 0;
}

static void *idle(void *argument) {
    struct clocks since = begin();
    pthread_mutex_lock(&end_mutex);
    while (!ended) pthread_cond_wait(&end, &end_mutex);
    pthread_mutex_unlock(&end_mutex);
    waited(argument, since);
    return 0;
}

__attribute__((noinline)) static void write_block(int file, char *block, long i, int direct) {
    if (pwrite(file, block, BLOCK, (off_t)(i % BLOCKS) * BLOCK) != BLOCK) perror("pwrite");
    if (!direct) fsync(file);
}

static struct waited io_phase(int *direct) {
    struct waited sum = {0, 0};
    char *block;
    if (!writes || posix_memalign((void **)&block, 4096, BLOCK)) return sum;
    memset(block, 1, BLOCK);
    struct clocks before = begin();
    int file = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
    if (file < 0) { perror(path); exit(1); }
    /* Blocks that exist already: what is measured are writes, not the growth of a file. */
    for (long i = 0; i < BLOCKS; i++) if (write(file, block, BLOCK) != BLOCK) perror("write");
    fsync(file);
    *direct = fcntl(file, F_SETFL, O_DIRECT) == 0;
    waited(&sum, before);
    for (long i = 0; i < writes; i++) {
        struct clocks since = begin();
        write_block(file, block, i, *direct);
        waited(&sum, since);
        COZ_PROGRESS_NAMED("write");
    }
    struct clocks after = begin();
    close(file);
    unlink(path);
    waited(&sum, after);
    return sum;
}

static struct waited sleep_phase(void) {
    struct waited sum = {0, 0};
    for (long i = 0; i < sleeps; i++) {
        struct timespec millisecond = {0, 1000000};
        struct clocks since = begin();
        nanosleep(&millisecond, 0);
        waited(&sum, since);
        COZ_PROGRESS_NAMED("sleep");
    }
    return sum;
}

static void print(const char *name, struct waited sum) {
    printf("%s_wait_ns=%llu\n%s_waits=%llu\n", name, (unsigned long long)sum.ns, name,
           (unsigned long long)sum.times);
}

static void options(int count, char **given) {
    struct { const char *name; long *value; } all[] = {
        {"compute=", &rounds}, {"lock=", &turns}, {"io=", &writes}, {"sleep=", &sleeps},
        {"work=", &work}, {"times=", &times}, {"seconds=", &seconds}, {"pin=", &pin}};
    for (int i = 1; i < count; i++) {
        int known = 0;
        for (unsigned o = 0; o < sizeof all / sizeof *all; o++)
            if (!strncmp(given[i], all[o].name, strlen(all[o].name)) && (known = 1))
                *all[o].value = atol(given[i] + strlen(all[o].name));
        if (!strncmp(given[i], "file=", 5) && (known = 1)) path = given[i] + 5;
        if (!known) { fprintf(stderr, "what is %s?\n", given[i]); exit(2); }
    }
}

int main(int count, char **given) {
    options(count, given);
    if (seconds) rounds = LONG_MAX;
    uint64_t began = now(CLOCK_MONOTONIC);
    struct waited idled = {0, 0};
    pthread_t idler;
    pthread_create(&idler, 0, idle, &idled);
    pthread_barrier_init(&barrier, 0, 2);
    /* The main thread is one of the two, so that it has no long wait for the other's end. */
    struct thread threads[2] = {{.first = 1, .x = 88172645463325252ull}, {.x = 362436069ull}};
    pthread_create(&threads[1].id, 0, both_phases, &threads[1]);
    both_phases(&threads[0]);
    struct clocks since = begin();
    pthread_join(threads[1].id, 0);
    struct waited join = {0, 0}, at_barrier = threads[0].barrier, for_lock = threads[0].lock;
    waited(&join, since);
    at_barrier.ns += threads[1].barrier.ns;
    at_barrier.times += threads[1].barrier.times;
    for_lock.ns += threads[1].lock.ns;
    for_lock.times += threads[1].lock.times;
    int direct = 0;
    struct waited io = io_phase(&direct), asleep = sleep_phase();
    pthread_mutex_lock(&end_mutex);
    ended = 1;
    pthread_cond_signal(&end);
    pthread_mutex_unlock(&end_mutex);
    pthread_join(idler, 0);
    print("barrier", at_barrier);
    print("lock", for_lock);
    print("join", join);
    print("io", io);
    print("sleep", asleep);
    print("idle", idled);
    printf("direct=%d\ncpu_ns=%llu\nwall_ns=%llu\nresult=%llu\n", direct,
           (unsigned long long)now(CLOCK_PROCESS_CPUTIME_ID),
           (unsigned long long)(now(CLOCK_MONOTONIC) - began),
           (unsigned long long)(threads[0].x ^ threads[1].x));
    return 0;
}
