#include "hdf5_file.h"

#include <errno.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* bytes of float32 per step, which takes tens of milliseconds at most, even if compressed */
#define STEP (8 * 1024 * 1024)
#define ALIGNMENT 64
#define MAX_ROWS INT32_MAX /* Caffe counts them in an int */

/* ---- fork()
 *
 * If a thread is inside libhdf5 during a fork, libhdf5's lock stays locked for ever in the child. Therefore fork()
 * waits until no thread of ours is inside, which usually takes one reading step.
 *
 * That thread may itself wait for libhdf5's lock, whose holder may wait for the GIL. This is a deadlock if the forking
 * thread holds the GIL. Therefore Python's fork() waits without the GIL, in fb_hdf5_before_fork(). The C library's
 * fork(), which other code may call, waits for one second at most.
 *
 * Between fb_hdf5_before_fork() and fork(), the forking thread needs the GIL and runs Python code. Therefore no thread
 * may wait at the gate with the GIL, and the forking thread must not wait for a thread that waits there. */

typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int inside;
    int closed; /* how many threads keep it closed */
} gate;

static const gate open_gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
static gate libhdf5 = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
static _Thread_local int closed_here; /* by this thread, for Python's fork() */

void fb_hdf5_enter(void) {
    pthread_mutex_lock(&libhdf5.lock);
    while (libhdf5.closed) pthread_cond_wait(&libhdf5.changed, &libhdf5.lock);
    libhdf5.inside++;
    pthread_mutex_unlock(&libhdf5.lock);
}

void fb_hdf5_leave(void) {
    pthread_mutex_lock(&libhdf5.lock);
    libhdf5.inside--;
    pthread_cond_broadcast(&libhdf5.changed);
    pthread_mutex_unlock(&libhdf5.lock);
}

/* Closes the gate and waits for the threads inside. Without the gate, a reader could re-enter again and again before
 * the forking thread gets its chance. Called under the lock. */
static void close_and_wait(int seconds) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += seconds;
    libhdf5.closed++;
    while (libhdf5.inside && pthread_cond_timedwait(&libhdf5.changed, &libhdf5.lock, &end) == 0) {}
}

static void open_again(void) {
    libhdf5.closed--;
    pthread_cond_broadcast(&libhdf5.changed);
}

void fb_hdf5_before_fork(void) {
    pthread_mutex_lock(&libhdf5.lock);
    close_and_wait(60);
    closed_here = 1;
    pthread_mutex_unlock(&libhdf5.lock);
}

void fb_hdf5_after_fork(void) {
    pthread_mutex_lock(&libhdf5.lock);
    open_again();
    closed_here = 0;
    pthread_mutex_unlock(&libhdf5.lock);
}

void fb_hdf5_join(pthread_t thread) {
    const int ours = closed_here;
    if (ours) fb_hdf5_after_fork();
    pthread_join(thread, NULL);
    if (ours) fb_hdf5_before_fork();
}

static void before_fork(void) {
    pthread_mutex_lock(&libhdf5.lock);
    close_and_wait(1);
}

static void after_fork(void) {
    open_again();
    pthread_mutex_unlock(&libhdf5.lock);
}

static void after_fork_in_child(void) {
    libhdf5 = open_gate; /* no thread waits at it, because only the forking thread exists here */
    closed_here = 0;
}

int fb_hdf5_begin(void) {
    return H5open() >= 0 ? pthread_atfork(before_fork, after_fork, after_fork_in_child) : -1;
}

int fb_hdf5_is_thread_safe(void) {
    hbool_t is_thread_safe = 0;
    return H5is_library_threadsafe(&is_thread_safe) >= 0 && is_thread_safe;
}

/* ---- errors: the message includes libhdf5's innermost reason */

static herr_t note_reason(unsigned depth, const H5E_error2_t *reason, void *into) {
    if (depth == 0 && reason->desc) snprintf(into, 256, ": %s", reason->desc);
    return 0;
}

/* Appends libhdf5's reason to the caller's message. Returns -1. */
static int with_reason(fb_error *error) {
    char reason[256] = "";
    const size_t used = strlen(error->text);
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, note_reason, reason);
    snprintf(error->text + used, sizeof error->text - used, "%s", reason);
    return -1;
}

/* ---- opening: a file's claims are checked before they are used */

static const char *class_name(H5T_class_t class) {
    switch (class) {
        case H5T_TIME: return "H5T_TIME";
        case H5T_STRING: return "H5T_STRING";
        case H5T_BITFIELD: return "H5T_BITFIELD";
        case H5T_OPAQUE: return "H5T_OPAQUE";
        case H5T_COMPOUND: return "H5T_COMPOUND";
        case H5T_REFERENCE: return "H5T_REFERENCE";
        case H5T_ENUM: return "H5T_ENUM";
        case H5T_VLEN: return "H5T_VLEN";
        case H5T_ARRAY: return "H5T_ARRAY";
        default: return "unknown";
    }
}

static void describe(const int64_t *shape, int ndim, char text[128]) {
    size_t used = (size_t)snprintf(text, 128, "(");
    for (int axis = 0; axis < ndim && used < 100; axis++) {
        used += (size_t)snprintf(text + used, 128 - used, "%s%lld", axis ? ", " : "", (long long)shape[axis]);
    }
    snprintf(text + used, 128 - used, used < 100 ? ")" : " ...)");
}

/* Returns the rows per step: a few megabytes, in whole chunks of the file so that each chunk is decompressed once. */
static int64_t rows_of_step(hid_t dataset, int64_t row_values, int ndim) {
    hsize_t chunk[FB_HDF5_MAX_DIMS];
    const int64_t rows = STEP / 4 / row_values;
    int64_t chunk_rows = 1;
    const hid_t properties = H5Dget_create_plist(dataset);
    if (properties >= 0) {
        if (H5Pget_layout(properties) == H5D_CHUNKED && H5Pget_chunk(properties, ndim, chunk) == ndim)
            chunk_rows = (int64_t)chunk[0];
        H5Pclose(properties);
    }
    if (chunk_rows < 1 || chunk_rows > MAX_ROWS) chunk_rows = 1;
    return rows < chunk_rows ? chunk_rows : rows / chunk_rows * chunk_rows;
}

/* Opens dataset i and compares its shape with the layout, or defines the layout by it. */
static int open_dataset(fb_hdf5_file *file, int i, const char *path, fb_hdf5_layout *layout, fb_hdf5_rows *rows,
                        fb_error *error) {
    const char *name = layout->names[i];
    hsize_t sizes[FB_HDF5_MAX_DIMS];
    int64_t shape[FB_HDF5_MAX_DIMS], values = 1;
    if (H5Lexists(file->file, name, H5P_DEFAULT) <= 0) {
        return fb_fail(error, "Failed to find HDF5 dataset %s in %s: each top has the name of a dataset", name, path);
    }
    const hid_t dataset = file->datasets[i] = H5Dopen2(file->file, name, H5P_DEFAULT);
    if (dataset < 0) {
        fb_fail(error, "%s in %s is not a dataset that can be read", name, path);
        return with_reason(error);
    }

    const hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
    const H5T_class_t class = H5Tget_class(type);
    const int ndim = H5Sget_simple_extent_ndims(space);
    const int simple = ndim <= FB_HDF5_MAX_DIMS && H5Sget_simple_extent_dims(space, sizes, NULL) == ndim;
    H5Tclose(type);
    H5Sclose(space);
    if (class != H5T_FLOAT && class != H5T_INTEGER) {
        return fb_fail(error, "dataset %s in %s holds neither integers nor floats: Unsupported datatype class: %s",
                       name, path, class_name(class));
    }
    if (ndim < 1 || !simple) {
        return fb_fail(error,
                       "dataset %s in %s has no rows: it needs at least 1 axis, the first of which counts samples",
                       name, path);
    }
    for (int axis = 1; axis < ndim; axis++) {
        if (sizes[axis] > INT32_MAX || __builtin_mul_overflow(values, (int64_t)sizes[axis], &values) ||
            values > INT32_MAX) {
            return fb_fail(
                error,
                "a row of dataset %s in %s has more values than a Blob can hold (in Caffe's words: blob size exceeds "
                "INT_MAX)",
                name, path);
        }
        shape[axis - 1] = (int64_t)sizes[axis];
    }
    if (sizes[0] == 0 || values == 0) return fb_fail(error, "dataset %s in %s is empty", name, path);
    if (sizes[0] > MAX_ROWS) {
        return fb_fail(error, "dataset %s in %s has %llu rows, more than Caffe can count", name, path,
                       (unsigned long long)sizes[0]);
    }
    if (i == 0) rows->count = (int64_t)sizes[0];
    if ((int64_t)sizes[0] != rows->count) {
        return fb_fail(error,
                       "in %s, dataset %s has %llu rows and dataset %s has %lld: all have as many (in Caffe's words: "
                       "Check failed: "
                       "hdf_blobs_[i]->shape(0) == num)",
                       path, name, (unsigned long long)sizes[0], layout->names[0], (long long)rows->count);
    }
    if (!layout->known) {
        layout->ndim[i] = ndim - 1;
        memcpy(layout->shape[i], shape, sizeof shape);
        layout->values[i] = values;
        layout->is_integer[i] = class == H5T_INTEGER;
    } else if (values != layout->values[i]) { /* only the axes may differ, as in Caffe: (n) and (n, 1), for example */
        char found[128], expected[128];
        describe(shape, ndim - 1, found);
        describe(layout->shape[i], layout->ndim[i], expected);
        return fb_fail(
            error,
            "in %s, a row of dataset %s has shape %s, but in the first file %s, which are not as many values; Caffe "
            "would show wrong ones",
            path, name, found, expected);
    }
    file->step[i] = rows_of_step(dataset, values, ndim);
    return 0;
}

/* Provides memory for all rows, and reuses the existing memory if it is large enough. */
static int reserve(const char *path, const fb_hdf5_layout *layout, fb_hdf5_rows *rows, fb_error *error) {
    /* A file of a few bytes can claim any size. With overcommitted memory, the allocation would succeed and a later
     * write would fail. */
    const size_t present = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / (size_t)layout->in_memory;
    size_t offsets[FB_HDF5_MAX_DATASETS], floats = 0;
    int too_large = 0;
    for (int i = 0; i < layout->count && !too_large; i++) {
        offsets[i] = floats;
        floats += ((size_t)rows->count * (size_t)layout->values[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        too_large = floats > present / sizeof(float); /* long before the sum overflows: each product is below 2^62 */
    }
    if (too_large || floats * sizeof(float) > rows->capacity) {
        void *memory = NULL;
        free(rows->memory);
        rows->memory = NULL;
        rows->capacity = 0;
        if (too_large || posix_memalign(&memory, ALIGNMENT, floats * sizeof(float)) != 0) {
            return fb_fail(error,
                           "no memory for the %lld rows of %s as float32: split it into several files, of which two "
                           "are in memory at a time",
                           (long long)rows->count, path);
        }
        rows->memory = memory;
        rows->capacity = floats * sizeof(float);
    }
    for (int i = 0; i < layout->count; i++) rows->datasets[i] = rows->memory + offsets[i];
    return 0;
}

static int open_all(fb_hdf5_file *file, const char *path, fb_hdf5_layout *layout, fb_hdf5_rows *rows, fb_error *error) {
    file->file = -1;
    file->dataset = 0;
    file->row = 0;
    for (int i = 0; i < FB_HDF5_MAX_DATASETS; i++) file->datasets[i] = -1;
    struct stat status;
    if (stat(path, &status) != 0 || access(path, R_OK) != 0)
        return fb_fail(error, "Failed opening HDF5 file: %s: %s", path, strerror(errno));
    /* a pipe would block */
    if (!S_ISREG(status.st_mode)) return fb_fail(error, "Failed opening HDF5 file: %s is not a file", path);
    file->file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file->file < 0) {
        fb_fail(error, "Failed opening HDF5 file: %s", path);
        return with_reason(error);
    }
    for (int i = 0; i < layout->count; i++) {
        if (open_dataset(file, i, path, layout, rows, error) != 0) return -1;
    }
    layout->known = 1;
    return reserve(path, layout, rows, error);
}

int fb_hdf5_open(fb_hdf5_file *file, const char *path, fb_hdf5_layout *layout, fb_hdf5_rows *rows, fb_error *error) {
    int code;
    H5E_BEGIN_TRY { /* otherwise libhdf5 prints its errors */
        code = open_all(file, path, layout, rows, error);
    }
    H5E_END_TRY
    return code;
}

/* ---- reading */

static int read_rows(fb_hdf5_file *file, int64_t count, const char *path, const fb_hdf5_layout *layout,
                     const fb_hdf5_rows *rows, fb_error *error) {
    const int i = file->dataset;
    hsize_t start[FB_HDF5_MAX_DIMS] = {(hsize_t)file->row}, sizes[FB_HDF5_MAX_DIMS];
    const hid_t in_file = H5Dget_space(file->datasets[i]);
    /* This file's own number of axes, which open_dataset() has checked. */
    const int ndim = H5Sget_simple_extent_dims(in_file, sizes, NULL);
    sizes[0] = (hsize_t)count;
    const hid_t in_memory = ndim > 0 ? H5Screate_simple(ndim, sizes, NULL) : -1;
    float *to = rows->datasets[i] + file->row * layout->values[i];
    const int done = in_file >= 0 && in_memory >= 0 &&
                     H5Sselect_hyperslab(in_file, H5S_SELECT_SET, start, NULL, sizes, NULL) >= 0 &&
                     H5Dread(file->datasets[i], H5T_NATIVE_FLOAT, in_memory, in_file, H5P_DEFAULT, to) >= 0;
    if (!done) {
        fb_fail(error, "Failed to read float dataset %s of %s, rows %lld to %lld", layout->names[i], path,
                (long long)file->row, (long long)(file->row + count - 1));
        with_reason(error);
    }
    if (in_file >= 0) H5Sclose(in_file);
    if (in_memory >= 0) H5Sclose(in_memory);
    return done ? 0 : -1;
}

int fb_hdf5_read_some(fb_hdf5_file *file, const char *path, const fb_hdf5_layout *layout, const fb_hdf5_rows *rows,
                      fb_error *error) {
    const int64_t left = rows->count - file->row, step = file->step[file->dataset], count = left < step ? left : step;
    int code;
    H5E_BEGIN_TRY {
        code = read_rows(file, count, path, layout, rows, error);
    }
    H5E_END_TRY
    if (code != 0) return -1;
    file->row += count;
    if (file->row == rows->count) {
        file->row = 0;
        file->dataset++;
    }
    return file->dataset < layout->count;
}

void fb_hdf5_close(fb_hdf5_file *file) {
    H5E_BEGIN_TRY {
        for (int i = 0; i < FB_HDF5_MAX_DATASETS; i++) {
            if (file->datasets[i] >= 0) H5Dclose(file->datasets[i]);
        }
        if (file->file >= 0) H5Fclose(file->file);
    }
    H5E_END_TRY
}

void fb_hdf5_free(fb_hdf5_rows *rows) {
    free(rows->memory);
    memset(rows, 0, sizeof *rows);
}
