/* What the C tests share. A failed check says where and stops the program. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition, ...) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr); \
            exit(1); \
        } \
    } while (0)

/* Random numbers of the tests themselves (xorshift64*), so that random.h is not checked with random.h. */
static uint64_t test_random_state = 88172645463325252u;

static inline uint32_t test_random(void) {
    test_random_state ^= test_random_state >> 12;
    test_random_state ^= test_random_state << 25;
    test_random_state ^= test_random_state >> 27;
    return (uint32_t)((test_random_state * 0x2545f4914f6cdd1du) >> 32);
}

static inline int64_t test_between(int64_t low, int64_t high) { /* both included */
    return low + (int64_t)(test_random() % (uint64_t)(high - low + 1));
}

/* For the fuzzers: a file FOLDER/NUMBER. */
static inline void write_seed(const char *folder, long number, const unsigned char *bytes, size_t size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%ld", folder, number);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0, "%s", path);
}

#endif
