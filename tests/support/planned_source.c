/* A source for tests, as a third party would write one. A plan says, with a character for each sample, what it does:
 *
 *   .  deliver it                       l  locate() fails      F  locate() fails, the source is lost
 *   w  wait at the gate in read()       r  read() fails        f  read() fails, the source is lost
 *   L  wait at the gate in locate()     W  wait at the gate in read(), then fail
 *   k  wait at the gate in read(); it has a key, "the key of sample" and 200 digits
 *   s  deliver it with one value more than the others (only where shapes may vary)
 *
 * Sample i has "data": int32, `width` times the number i, and "label": int64, i. A gate, once opened, stays open.
 */
#include "fastbatch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

extern void *PyCapsule_GetPointer(void *capsule, const char *name); /* of the Python that loads this */

typedef struct planned {
    fb_source source; /* first: Python finds it at the same address */
    fb_field fields[2];
    int width;
    int32_t *values; /* width + 1 for each sample */
    _Atomic char *plan;
    pthread_mutex_t lock;
    pthread_cond_t opened;
    int open;
    atomic_int waiting;
    atomic_long reads;
    atomic_long located;
    atomic_long done;
    atomic_long held; /* the most that were located and not done at a time */
    atomic_int deleted;
} planned;

static void wait_at_gate(planned *self) {
    pthread_mutex_lock(&self->lock);
    self->waiting++;
    while (!self->open) pthread_cond_wait(&self->opened, &self->lock);
    self->waiting--;
    pthread_mutex_unlock(&self->lock);
}

static int locate(void *argument, fb_record *record, fb_worker *worker, fb_error *error) {
    planned *self = argument;
    (void)worker;
    const char action = self->plan[record->index];
    if (action == 'L') wait_at_gate(self);
    if (action == 'k') {
        static char key[217]; /* the same bytes for every sample */
        for (int i = 0; i < 217; i++) key[i] = i < 17 ? "the key of sample"[i] : '0' + i % 10;
        record->key = key;
        record->key_size = sizeof key;
    }
    if (action != 'l' && action != 'F') {
        const long held = ++self->located - self->done;
        if (held > self->held) self->held = held; /* by the one thread that is in here */
        return 0;
    }
    error->fatal = action == 'F';
    return fb_fail(error, "planned failure of locate");
}

static int read_sample(void *argument, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) {
    planned *self = argument;
    const char action = self->plan[record->index];
    (void)worker;
    if (action == 'w' || action == 'W' || action == 'k') wait_at_gate(self);
    self->reads++;
    if (action == 'r' || action == 'f' || action == 'W') {
        error->fatal = action == 'f';
        return fb_fail(error, "planned failure of read");
    }
    views[0] = (fb_view){
        .data = self->values + record->index * (self->width + 1),
        .dtype = FB_INT32,
        .ndim = 1,
        .shape = {self->width + (action == 's')},
        .strides = {sizeof(int32_t)},
    };
    views[1] = (fb_view){.data = &views[1].scalar, .dtype = FB_INT64, .scalar = (int64_t)record->index};
    return 0;
}

static void done(void *argument, const fb_record *record, fb_worker *worker) {
    planned *self = argument;
    (void)record, (void)worker;
    self->done++;
}

planned *planned_new(const char *plan, int width, int shapes_vary, int at_once) {
    const size_t count = strlen(plan);
    planned *self = calloc(1, sizeof *self);
    self->width = width;
    self->values = calloc(count * (width + 1), sizeof *self->values);
    for (size_t i = 0; i < count * (width + 1); i++) self->values[i] = (int32_t)(i / (width + 1));
    self->plan = calloc(count + 1, 1);
    for (size_t i = 0; i < count; i++) self->plan[i] = plan[i];
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->opened, NULL);
    self->fields[0] = (fb_field){.name = "data", .dtype = FB_INT32, .ndim = shapes_vary ? -1 : 1, .shape = {width}};
    self->fields[1] = (fb_field){.name = "label", .dtype = FB_INT64};
    self->source = (fb_source){
        .abi = FB_SOURCE_ABI,
        .size = sizeof(fb_source),
        .field_count = 2,
        .fields = self->fields,
        .name = "planned",
        .count = count,
        .self = self,
        .locate = locate,
        .read = read_sample,
        .done = done,
        .at_once = at_once,
    };
    return self; /* never freed: a worker that was left behind may still be in here */
}

void planned_change(planned *self, long index, char action) {
    self->plan[index] = action;
}
int planned_waiting(planned *self) {
    return self->waiting;
}
long planned_reads(planned *self) {
    return self->reads;
}
long planned_located(planned *self) {
    return self->located;
}
long planned_done(planned *self) {
    return self->done;
}
long planned_held(planned *self) {
    return self->held;
}
int planned_deleted(planned *self) {
    return self->deleted;
}

void planned_open_gate(planned *self) {
    pthread_mutex_lock(&self->lock);
    self->open = 1;
    pthread_cond_broadcast(&self->opened);
    pthread_mutex_unlock(&self->lock);
}

/* Opens the gate and comes back when `reads` samples were read, or after 10 s. Returns how many were. Called through
 * ctypes.PyDLL, it holds the GIL all the while. */
long planned_run_until(planned *self, long reads) {
    const struct timespec pause = {0, 1000000};
    planned_open_gate(self);
    for (int i = 0; i < 10000 && self->reads < reads; i++) nanosleep(&pause, NULL);
    nanosleep(&(struct timespec){0, 50000000}, NULL); /* what a worker still does after its last read() */
    return self->reads;
}

/* The capsule's destructor. */
void planned_delete(void *capsule) {
    planned *self = PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE);
    self->deleted++;
}
