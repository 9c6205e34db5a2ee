// A process that holds what it is given everywhere a process can hold something, and then does nothing: the control of the
// memory scan, which must find all of it.
//
//     holder < INPUT        INPUT: register bytes (REGISTERS), then anything to the end
//
// Prints "NAME START LENGTH" (hexadecimal) for each place in memory that has a copy of "anything", then "ready", and waits until
// it is killed. One copy lies in secret memory, where the scan must not find it. The register bytes are loaded by a thread
// that runs on without touching them.

#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// general: rbx, r12 to r15; then mask registers k0 to k7; then 32 vector registers of 64 bytes
enum { GENERAL = 5 * 8, MASKS = 8 * 8, VECTORS = 32 * 64, REGISTERS = GENERAL + MASKS + VECTORS, LONGEST = 1 << 22, SPARE = 1 << 18 };

static unsigned char registers[REGISTERS] __attribute__((aligned(64)));
static unsigned char *given;
static size_t length;

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void tell(const char *name, const void *start) { printf("%s %zx %zx\n", name, (size_t)start, length); }

static void *map(int protection) {
    void *place = mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(place != MAP_FAILED, "mmap");
    return place;
}

static void *keep_on_stack(void *unused) {
    (void)unused;
    unsigned char copy[length];
    memcpy(copy, given, length);
    tell("stack", copy);
    __asm__ volatile("" : : "r"(copy) : "memory");
    for (;;) pause();
    return NULL;
}

#define ALL16(load) load(0) load(1) load(2) load(3) load(4) load(5) load(6) load(7) \
    load(8) load(9) load(10) load(11) load(12) load(13) load(14) load(15)
#define ALL32(load) ALL16(load) load(16) load(17) load(18) load(19) load(20) load(21) load(22) load(23) \
    load(24) load(25) load(26) load(27) load(28) load(29) load(30) load(31)
#define MASK(n) "kmovq 40+8*" #n "(%0), %%k" #n "\n"
#define ZMM(n) "vmovdqu64 104+64*" #n "(%0), %%zmm" #n "\n"
#define YMM(n) "vmovdqu 104+64*" #n "(%0), %%ymm" #n "\n"
#define XMM(n) "movdqu 104+64*" #n "(%0), %%xmm" #n "\n"
#define GENERAL_AND_STAY "mov 0(%0), %%rbx\nmov 8(%0), %%r12\nmov 16(%0), %%r13\nmov 24(%0), %%r14\nmov 32(%0), %%r15\n1: pause\njmp 1b\n"

static void *keep_in_registers(void *unused) {
    (void)unused;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw"))
        __asm__ volatile(MASK(0) MASK(1) MASK(2) MASK(3) MASK(4) MASK(5) MASK(6) MASK(7) ALL32(ZMM) GENERAL_AND_STAY
                         : : "r"(registers) : "memory");
    else if (__builtin_cpu_supports("avx"))
        __asm__ volatile(ALL16(YMM) GENERAL_AND_STAY : : "r"(registers) : "memory");
    else
        __asm__ volatile(ALL16(XMM) GENERAL_AND_STAY : : "r"(registers) : "memory");
    __builtin_unreachable();
}

int main(void) {
    mallopt(M_MMAP_THRESHOLD, 4 * LONGEST); // on the heap, however long
    given = malloc(LONGEST);
    check(given != NULL, "malloc");
    check(fread(registers, 1, REGISTERS, stdin) == REGISTERS, "the register bytes");
    length = fread(given, 1, LONGEST, stdin);
    tell("heap", given);

    // Freed, and long enough that what is allocated later does not reach the copy.
    unsigned char *freed = malloc(SPARE + length);
    void *behind = malloc(64); // else it would go back to the top of the heap, and on to the kernel
    check(freed != NULL && behind != NULL, "malloc");
    memcpy(freed + SPARE, given, length);
    tell("freed", freed + SPARE);
    free(freed);

    unsigned char *closed = map(PROT_READ | PROT_WRITE);
    memcpy(closed, given, length);
    check(mprotect(closed, length, PROT_NONE) == 0, "mprotect");
    tell("closed", closed);

    int secret = syscall(SYS_memfd_secret, 0);
    if (secret >= 0) { // else the kernel has none
        check(ftruncate(secret, length) == 0, "ftruncate");
        void *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, secret, 0);
        check(place != MAP_FAILED, "mmap of secret memory");
        memcpy(place, given, length);
        tell("secret", place);
        close(secret);
    }

    pthread_t thread;
    check(pthread_create(&thread, NULL, keep_on_stack, NULL) == 0, "a thread");
    check(pthread_create(&thread, NULL, keep_in_registers, NULL) == 0, "a thread");
    sleep(1); // both have begun
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
