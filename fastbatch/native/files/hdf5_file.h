/* The rows of an HDF5 file as Caffe's HDF5Data reads them: whole datasets in memory, converted to float32 by libhdf5.
 *
 * A file is read in steps of a few megabytes. A thread-safe libhdf5 admits one thread at a time, so its other users,
 * such as Caffe's snapshots, wait for at most one step. Between two steps a read can be abandoned.
 *
 * Opening, reading and closing call libhdf5. The caller holds the GIL; or, only if fb_hdf5_is_thread_safe() returns
 * true, it calls without the GIL, between fb_hdf5_enter() and fb_hdf5_leave(). No function calls Python.
 */
#ifndef FASTBATCH_HDF5_FILE_H
#define FASTBATCH_HDF5_FILE_H

#include "fastbatch.h"

#include <hdf5.h>
#include <pthread.h>

#define FB_HDF5_MAX_DATASETS 16
#define FB_HDF5_MAX_DIMS H5S_MAX_RANK

/* What all files of a source have in common. */
typedef struct fb_hdf5_layout {
    /* Set by the caller, before the first file: */
    int count;     /* of datasets */
    int in_memory; /* how many files are in memory at a time */
    const char *names[FB_HDF5_MAX_DATASETS];
    /* Set by the first file: */
    int known;                      /* whether what follows is set */
    int ndim[FB_HDF5_MAX_DATASETS]; /* without the first axis, which counts rows */
    int64_t shape[FB_HDF5_MAX_DATASETS][FB_HDF5_MAX_DIMS];
    int64_t values[FB_HDF5_MAX_DATASETS]; /* of a row */
    int is_integer[FB_HDF5_MAX_DATASETS]; /* H5T_INTEGER in the file; otherwise H5T_FLOAT */
} fb_hdf5_layout;

/* A file's content. The next file reuses the memory. */
typedef struct fb_hdf5_rows {
    int64_t count;
    float *datasets[FB_HDF5_MAX_DATASETS];
    float *memory;
    size_t capacity; /* bytes */
} fb_hdf5_rows;

/* A file that is being read. */
typedef struct fb_hdf5_file {
    hid_t file;
    hid_t datasets[FB_HDF5_MAX_DATASETS];
    int64_t step[FB_HDF5_MAX_DATASETS]; /* rows at a time */
    int dataset;                        /* the one that is being read */
    int64_t row;
} fb_hdf5_file;

/* Must be called once per process, before any other function here. Returns 0 if libhdf5 can be used. */
int fb_hdf5_begin(void);

/* Call these around Python's fork(), in the parent, without the GIL: see hdf5_file.c. */
void fb_hdf5_before_fork(void);
void fb_hdf5_after_fork(void);

/* Call these around calls of libhdf5 without the GIL: fork() waits for the calls to end, and they wait for fork(). */
void fb_hdf5_enter(void);
void fb_hdf5_leave(void);

/* Waits, without the GIL, until a thread that calls fb_hdf5_enter() has ended. May be called between
 * fb_hdf5_before_fork() and fork(). */
void fb_hdf5_join(pthread_t thread);

int fb_hdf5_is_thread_safe(void);

/* Opens a file, compares its datasets with the layout or fills in the layout, and allocates memory for `rows`. Returns
 * 0, or -1 with *error. */
int fb_hdf5_open(fb_hdf5_file *file, const char *path, fb_hdf5_layout *layout, fb_hdf5_rows *rows, fb_error *error);

/* Reads a few more megabytes. Returns 1 if more remain, 0 at the end, or -1 with *error. */
int fb_hdf5_read_some(fb_hdf5_file *file, const char *path, const fb_hdf5_layout *layout, const fb_hdf5_rows *rows,
                      fb_error *error);

/* Must be called after fb_hdf5_open(), even if that or a read failed. */
void fb_hdf5_close(fb_hdf5_file *file);

/* Frees the rows' memory. Does not call libhdf5. */
void fb_hdf5_free(fb_hdf5_rows *rows);

#endif
