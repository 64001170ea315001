"""A small library that lets coz into the right process, as source text in C.

coz profiles the process that it starts, and takes itself out of the environment there: of a
program that a script, `env` or `timeout` starts it sees nothing, without a word. So this library is
preloaded in all processes below the command, and starts those anew under coz whose executable has
progress points. It also looks at what coz cannot read, before coz silently passes over it.

It is compiled where it is used: what has progress points was compiled there, too.
"""

__all__ = ["SOURCE"]

SOURCE = r"""
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What coz.h and its equivalents ask the dynamic linker for. */
#define WANTED "_coz_get_counter"

enum { MOST_SEEN = 1 << 16 };

struct bytes { const char *at; size_t size; };

static struct bytes mapped(const char *path) {
    struct bytes file = {0, 0};
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return file;
    if (!fstat(fd, &status) && S_ISREG(status.st_mode) && status.st_size > 0) {
        void *at = mmap(0, status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (at != MAP_FAILED) file = (struct bytes){at, status.st_size};
    }
    close(fd);
    return file;
}

static struct bytes part(struct bytes file, uint64_t offset, uint64_t size) {
    if (offset > file.size || size > file.size - offset) return (struct bytes){0, 0};
    return (struct bytes){file.at + offset, size};
}

static int is_elf(struct bytes file) {
    return file.size > sizeof(Elf64_Ehdr) && !memcmp(file.at, ELFMAG, SELFMAG)
        && file.at[EI_CLASS] == ELFCLASS64;
}

static struct bytes section(struct bytes file, const char *name, int *compressed) {
    const Elf64_Ehdr *head = (const void *)file.at;
    struct bytes none = {0, 0};
    struct bytes table = part(file, head->e_shoff, head->e_shnum * sizeof(Elf64_Shdr));
    const Elf64_Shdr *all = (const void *)table.at;
    if (!table.size || head->e_shstrndx >= head->e_shnum) return none;
    const Elf64_Shdr *of_names = &all[head->e_shstrndx];
    struct bytes names = part(file, of_names->sh_offset, of_names->sh_size);
    for (int i = 0; i < head->e_shnum; i++) {
        struct bytes own = part(names, all[i].sh_name, strlen(name) + 1);
        if (own.size && !memcmp(own.at, name, own.size) && all[i].sh_type != SHT_NOBITS) {
            *compressed = (all[i].sh_flags & SHF_COMPRESSED) != 0;
            return part(file, all[i].sh_offset, all[i].sh_size);
        }
    }
    return none;
}

static int has_interpreter(struct bytes file) {
    const Elf64_Ehdr *head = (const void *)file.at;
    struct bytes table = part(file, head->e_phoff, head->e_phnum * sizeof(Elf64_Phdr));
    const Elf64_Phdr *all = (const void *)table.at;
    for (int i = 0; table.size && i < head->e_phnum; i++) if (all[i].p_type == PT_INTERP) return 1;
    return 0;
}

/* The newest DWARF version of any unit. */
static unsigned dwarf(struct bytes units) {
    unsigned newest = 0;
    for (uint64_t at = 0; at + 14 < units.size;) {
        uint32_t size;
        uint64_t length;
        uint16_t version;
        memcpy(&size, units.at + at, 4);
        int wide = size == 0xffffffff;
        if (wide) memcpy(&length, units.at + at + 4, 8);
        else length = size;
        at += wide ? 12 : 4;
        memcpy(&version, units.at + at, 2);
        if (version > newest) newest = version;
        if (length > units.size - at) break;
        at += length;
    }
    return newest;
}

static const char *problem_of(struct bytes file) {
    int compressed = 0;
    struct bytes units = section(file, ".debug_info", &compressed);
    /* As GNU's tools once did it. */
    if (!units.size && section(file, ".zdebug_info", &compressed).size) compressed = 1;
    if (!units.size && !compressed) return "no-debug-info";
    if (getenv("AIOPT_COZ_NEW")) return "";
    if (compressed) return "compressed";
    if (dwarf(units) >= 5) return "dwarf-5";
    struct bytes kinds = section(file, ".debug_abbrev", &compressed);
    /* DW_AT_GNU_locviews, as LEB128. */
    if (kinds.size && memmem(kinds.at, kinds.size, "\xb7\x42", 2)) return "location-views";
    return "";
}

static int is_wanted(const char *path, struct bytes file) {
    const char *pattern = getenv("AIOPT_COZ_PROGRAM");
    if (!is_elf(file)) return 0;
    if (pattern && *pattern) return !fnmatch(pattern, path, 0);
    return memmem(file.at, file.size, WANTED, sizeof WANTED - 1) != 0;
}

static void write_line(const char *name, int flags, const char *path, const char *problem) {
    char line[5000];
    struct stat status;
    const char *format = "aiopt-program\tpath=%.4096s\tproblem=%s";
    int size = snprintf(line, sizeof line, format, path, problem);
    for (int i = 0; i < size; i++)
        if ((unsigned char)line[i] < ' ' && line[i] != '\t') line[i] = '?';
    line[size++] = '\n';
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
    if (fd < 0) return;
    /* Where there is no room for it, it is missing; the program is not to be disturbed. */
    if (!fstat(fd, &status) && status.st_size < MOST_SEEN && write(fd, line, size) < 0) size = 0;
    close(fd);
}

static void remember(const char *path, const char *problem, int wanted) {
    char name[4200];
    const char *out = getenv("AIOPT_COZ_OUT");
    if (!out) return;
    if (!wanted) snprintf(name, sizeof name, "%.4096s.others", out);
    else snprintf(name, sizeof name, "%.4096s.process.%d", out, (int)getpid());
    write_line(name, wanted ? O_TRUNC : O_APPEND, path, problem);
}

/* Whether coz starts this, and not what leads to coz itself (`env`, a chooser of versions). */
static int by_coz(char *const envp[]) {
    for (; envp && *envp; envp++)
        if (!strncmp(*envp, "LD_PRELOAD=", 11) && strstr(*envp, "/libcoz")) return 1;
    return 0;
}

/* A program that is linked statically never loads this library: only who starts it can see it. */
int execve(const char *path, char *const argv[], char *const envp[]) {
    struct bytes file = mapped(path);
    if (file.size && is_wanted(path, file) && !has_interpreter(file)) remember(path, "static", 1);
    if (file.size) munmap((void *)file.at, file.size);
    /* coz itself was started with TERM ignored, so that it waits for its program's end. */
    if (by_coz(envp)) signal(SIGTERM, SIG_DFL);
    return syscall(SYS_execve, path, argv, envp);
}

/* LD_PRELOAD without this library and without coz's, whose path is returned. */
static char *split(const char *list, const char *own, char *others) {
    char *found = 0, *copy = strdup(list), *rest = copy, *each;
    *others = 0;
    while ((each = strsep(&rest, ": "))) {
        const char *base = strrchr(each, '/');
        if (!*each || !strcmp(each, own)) continue;
        if (!strncmp(base ? base + 1 : each, "libcoz", 6)) found = strdup(each);
        else strcat(strcat(others, *others ? ":" : ""), each);
    }
    free(copy);
    return found;
}

static void preload(const char *first, const char *others) {
    char *all = malloc(strlen(first) + strlen(others) + 2);
    sprintf(all, "%s%s%s", first, *others ? ":" : "", others);
    setenv("LD_PRELOAD", all, 1);
    free(all);
}

__attribute__((constructor)) static void begin(int count, char **argv) {
    static char path[4200];
    const char *own = getenv("AIOPT_COZ_PRELOAD"), *list = getenv("LD_PRELOAD");
    if (!own || !list || count < 1) return;
    char *others = malloc(strlen(list) + 1), *coz = split(list, own, others);
    int inside = coz != 0;
    if (inside) {
        setenv("AIOPT_COZ_LIB", coz, 1);
        signal(SIGTERM, SIG_DFL);
    } else coz = getenv("AIOPT_COZ_LIB");
    /* Above coz there is nothing to profile. */
    if (!coz) return;
    ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
    struct bytes file = size > 0 ? mapped("/proc/self/exe") : (struct bytes){0, 0};
    int wanted = file.size && is_wanted(path, file);
    const char *problem = wanted ? problem_of(file) : "";
    if (file.size) munmap((void *)file.at, file.size);
    remember(path, problem, wanted);
    /* coz 0.2.2 aborts on these. */
    if (wanted && strcmp(problem, "dwarf-5") && strcmp(problem, "compressed")) {
        char name[4200];
        snprintf(name, sizeof name, "%.4096s.profile.%d", getenv("AIOPT_COZ_OUT"), (int)getpid());
        setenv("COZ_OUTPUT", name, 1);
        preload(coz, others);
        unsetenv("AIOPT_COZ_PRELOAD");
        syscall(SYS_execve, path, argv, environ);
    } else {
        preload(own, others);
        if (inside) syscall(SYS_execve, path, argv, environ);
    }
}
"""
