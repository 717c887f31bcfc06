/* For wakeup.py and closing.py: a source whose samples take a known time and hold the time at which they were done; and
 * how long a bare condition variable takes to wake a thread, a lower limit for everything built on one.
 */
#include <pthread.h>
#include <time.h>

#include "fastbatch.h"

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void rest(int64_t nanoseconds) {
    const struct timespec t = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    nanosleep(&t, NULL);
}

/* The source. */

typedef struct slow_source {
    fb_source source;
    fb_field field;
    int64_t pause;
} slow_source;

static int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) {
    (void)self, (void)record, (void)worker, (void)error;
    return 0;
}

static int read_moment(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) {
    (void)record, (void)worker, (void)error;
    rest(((slow_source *)self)->pause);
    views[0] = (fb_view){.data = &views[0].scalar, .dtype = FB_INT64, .ndim = 0};
    views[0].scalar = now();
    return 0;
}

/* Samples of one field "done", int64: the monotonic clock in nanoseconds, read `pause` nanoseconds after the work on
 * the sample began. NULL without memory. Never freed: it is small, and its loader's threads may outlive everything. */
fb_source *slow_source_new(int64_t pause, uint64_t count) {
    slow_source *slow = calloc(1, sizeof *slow);
    if (slow == NULL) return NULL;
    slow->pause = pause;
    slow->field = (fb_field){.name = "done", .dtype = FB_INT64, .ndim = 0};
    slow->source = (fb_source){.abi = FB_SOURCE_ABI,
                               .size = sizeof(fb_source),
                               .field_count = 1,
                               .fields = &slow->field,
                               .name = "slow samples",
                               .count = count,
                               .self = slow,
                               .locate = locate,
                               .read = read_moment};
    return &slow->source;
}

/* The bare condition variable. */

typedef struct bell {
    pthread_mutex_t lock;
    pthread_cond_t rung;
    int64_t pause, moment;
    int count;
} bell;

static void *ring(void *argument) {
    bell *b = argument;
    for (int i = 0; i < b->count;) {
        rest(b->pause);
        pthread_mutex_lock(&b->lock);
        if (b->moment == 0) { /* otherwise the waiting thread has not received the last one yet, on a busy machine */
            b->moment = now();
            pthread_cond_signal(&b->rung);
            i++;
        }
        pthread_mutex_unlock(&b->lock);
    }
    return NULL;
}

/* Measures `count` wake-ups, at least `pause` nanoseconds apart: the nanoseconds from the signal until the waiting
 * thread runs. Returns 0, or an errno. */
int bare_wakeups(int64_t pause, int count, int64_t *nanoseconds) {
    bell b = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, pause, 0, count};
    pthread_t thread;
    const int problem = pthread_create(&thread, NULL, ring, &b);
    if (problem) return problem;
    pthread_mutex_lock(&b.lock);
    for (int i = 0; i < count; i++) {
        while (b.moment == 0) pthread_cond_wait(&b.rung, &b.lock);
        nanoseconds[i] = now() - b.moment;
        b.moment = 0;
    }
    pthread_mutex_unlock(&b.lock);
    pthread_join(thread, NULL);
    return 0;
}
