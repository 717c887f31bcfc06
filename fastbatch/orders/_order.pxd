"""native/order.h, the order contract, for Cython."""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastbatch._contract cimport fb_error

cdef extern from "order.h" nogil:
    enum:
        FB_STATE_MAGIC
        FB_STATE_SETTINGS
    const char *FB_ORDER_CAPSULE

    ctypedef struct fb_pick:
        uint64_t index
        uint64_t epoch
        uint64_t drawn_by
        uint32_t draws[4]

    ctypedef struct fb_order:
        void *self
        uint64_t count
        uint64_t real
        uint64_t cycle
        uint64_t stride
        int caffe_draws
        int (*at)(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil
        void (*pure_at)(const void *self, uint64_t position, fb_pick *pick) noexcept nogil
        void (*counted)(void *self, uint64_t count, fb_pick *pick) noexcept nogil
        void (*draw)(const void *self, fb_pick *pick) noexcept nogil
        void (*alike)(const void *self, uint64_t index, uint64_t *first, uint64_t *step,
                      uint64_t *count) noexcept nogil
        size_t state_size
        void (*save)(const void *self, void *state) noexcept nogil
        int (*load)(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil

    ctypedef enum fb_order_kind:
        FB_ORDER_LINEAR
        FB_ORDER_PERMUTED
        FB_ORDER_SHARDED
        FB_ORDER_CAFFE_RECORDS
        FB_ORDER_CAFFE_LIST
        FB_ORDER_CAFFE_WINDOWS
        FB_ORDER_CAFFE_ROWS
        FB_ORDER_WINDOWED
        FB_ORDER_WEIGHTED

    ctypedef struct fb_state_head:
        uint32_t magic
        uint32_t kind
        uint64_t next
        uint64_t settings[5]

    int fb_state_check(const void *state, const fb_state_head *own, fb_error *error) noexcept


cdef inline void begin_head(fb_state_head *head, fb_order_kind kind) noexcept nogil:
    """Fills in the head of an order's states, except its settings."""
    head.magic = FB_STATE_MAGIC
    head.kind = kind


cdef inline void free_order(object capsule) noexcept:
    """Capsule destructor for an order that is a single block of memory and begins with its fb_order."""
    free(PyCapsule_GetPointer(capsule, FB_ORDER_CAPSULE))
