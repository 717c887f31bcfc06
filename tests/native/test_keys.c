/* keys.h: keys that threads store at the same time, in one batch after the other. */
#include "keys.h"

#include <pthread.h>

#include "check.h"

#define SAMPLES 5000
#define THREADS 4

static fb_keys keys;
static fb_sample_key samples[SAMPLES];
static int batch;

/* Sample i of a batch has a key of i % 600 bytes: some are longer than a batch keeps, and every 600th has none. */
static size_t key_of(int i, char *key) {
    memset(key, 'a' + (i + batch) % 26, 600);
    return (size_t)i % 600;
}

static void *store(void *argument) {
    char key[600];
    for (int i = (int)(size_t)argument; i < SAMPLES; i += THREADS) {
        fb_record record = {.index = (uint64_t)i, .key = key, .key_size = key_of(i, key)};
        CHECK(fb_keys_store(&keys, SAMPLES, &record, &samples[i]) == 0, "sample %d", i);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    const fb_keys_block *block = NULL;
    for (batch = 0; batch < 4; batch++) {
        fb_keys_reset(&keys);
        CHECK(batch < 2 || keys.newest == block, "from the third batch on, nothing is allocated");
        for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, store, (void *)i);
        for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
        block = keys.newest;
        for (int i = 0; i < SAMPLES; i++) {
            char expected[600];
            size_t size = key_of(i, expected), stored;
            const char *key = fb_keys_get(&samples[i], &stored);
            CHECK(samples[i].index == (uint64_t)i, "sample %d", i);
            CHECK((key == NULL) == (size == 0), "sample %d", i);
            if (size > FB_MAX_KEY) size = FB_MAX_KEY;
            if (size) CHECK(stored == size && memcmp(key, expected, size) == 0, "sample %d: %zu bytes", i, stored);
        }
    }
    fb_keys_free(&keys);
    CHECK(keys.newest == NULL, "nothing is left");
    return 0;
}
