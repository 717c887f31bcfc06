"""Why samples of a batch could not be loaded."""

from libc.stdint cimport uint32_t, uint64_t

from fastbatch._contract cimport fb_error, fb_record
from fastbatch.orders._order cimport fb_pick

cdef enum Verdict:  # what becomes of a sample that failed
    OPEN, RAISED, SKIPPED, REPLACED

cdef struct Failure:
    Failure *previous
    Failure *next
    uint32_t row  # index in the batch
    uint32_t attempt  # 0: the sample that the order picked; n: its n-th replacement
    fb_pick pick
    uint64_t index  # in the source
    int stage
    bint fatal  # the source as a whole is lost
    bint whole  # the batch as a whole cannot be made, whichever samples are in it
    Verdict verdict
    bint told  # to the user, in `Loader.errors`
    size_t key_size
    const char *key
    const char *text  # ends with a zero byte, like any string

cdef struct Failures:  # of a batch, in the order of their rows and attempts
    Failure *first
    Failure *last
    Failure **of_row  # the last one of each row; NULL: none

cdef inline void no_error(fb_error *error) noexcept nogil:
    """Initializes an error, without clearing all of its text: workers do this several times for each sample."""
    error.fatal = 0
    error.text[0] = 0


cdef Failure *failure_new(uint32_t row, uint32_t attempt, const fb_pick *pick, const fb_record *record, int stage,
                          const fb_error *error) noexcept nogil
cdef Failure *failure_copy(const Failure *failure) noexcept nogil
cdef bint failures_init(Failures *failures, uint32_t rows) noexcept nogil
cdef void failures_add(Failures *failures, Failure *failure) noexcept nogil
cdef void failures_clear(Failures *failures) noexcept nogil
cdef void failures_free(Failures *failures) noexcept nogil
