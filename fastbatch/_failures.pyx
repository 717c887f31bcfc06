# cython: language_level=3
"""Why samples of a batch could not be loaded.

Workers record failures without the GIL. The consumer decides what becomes of the samples. A failure is one block of
memory, as large as its text: a batch of any size may consist of bad samples.

Nothing here takes a lock.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastbatch._contract cimport FB_MAX_KEY

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t limit) noexcept

cdef const char *NO_REASON = b"the source gives no reason"


cdef Failure *failure_new(uint32_t row, uint32_t attempt, const fb_pick *pick, const fb_record *record, int stage,
                          const fb_error *error) noexcept nogil:
    """A failure without a verdict, with copies of the key and the text. NULL if memory runs out."""
    cdef size_t key_size = min(record.key_size, <size_t>FB_MAX_KEY) if record.key != NULL else 0
    # A source may have filled the text completely, without a zero byte.
    cdef size_t text_size = strnlen(error.text, sizeof(error.text) - 1)
    cdef const char *text = &error.text[0]
    cdef Failure *failure
    if text_size == 0:
        text = NO_REASON
        text_size = strnlen(text, sizeof(error.text) - 1)
    failure = <Failure *>malloc(sizeof(Failure) + key_size + text_size + 1)
    if failure == NULL:
        return NULL
    failure.previous = failure.next = NULL
    failure.row = row
    failure.attempt = attempt
    failure.pick = pick[0]
    failure.index = record.index
    failure.stage = stage
    failure.fatal = error.fatal
    failure.whole = False
    failure.verdict = OPEN
    failure.told = False
    put_strings(failure, <const char *>record.key, key_size, text, text_size)
    return failure


cdef void put_strings(Failure *failure, const char *key, size_t key_size, const char *text,
                      size_t text_size) noexcept nogil:
    """Copies the strings behind the struct, where there is room for them."""
    cdef char *end = <char *>(failure + 1)
    failure.key_size = key_size
    failure.key = end
    if key_size:
        memcpy(end, key, key_size)
    failure.text = end + key_size
    memcpy(end + key_size, text, text_size)
    end[key_size + text_size] = 0


cdef Failure *failure_copy(const Failure *failure) noexcept nogil:
    """A copy that is in no list. NULL if memory runs out."""
    cdef size_t text_size = strnlen(failure.text, sizeof(fb_error))
    cdef Failure *copy = <Failure *>malloc(sizeof(Failure) + failure.key_size + text_size + 1)
    if copy == NULL:
        return NULL
    copy[0] = failure[0]
    copy.previous = copy.next = NULL
    put_strings(copy, failure.key, failure.key_size, failure.text, text_size)
    return copy


cdef bint failures_init(Failures *failures, uint32_t rows) noexcept nogil:
    """Makes an empty list for a batch of so many rows. False if memory runs out."""
    failures.of_row = <Failure **>calloc(rows, sizeof(Failure *))
    return failures.of_row != NULL


cdef void failures_add(Failures *failures, Failure *failure) noexcept nogil:
    """Puts the failure into the list, behind those of earlier rows and attempts."""
    # A replacement fails behind what it was to replace. Otherwise from the end, because workers fail nearly in the
    # order of the rows.
    cdef Failure *before = failures.of_row[failure.row]
    if before == NULL:
        before = failures.last
        while before != NULL and failure.row < before.row:
            before = before.previous
    failures.of_row[failure.row] = failure
    failure.previous = before
    failure.next = failures.first if before == NULL else before.next
    if before == NULL:
        failures.first = failure
    else:
        before.next = failure
    if failure.next == NULL:
        failures.last = failure
    else:
        failure.next.previous = failure


cdef void failures_clear(Failures *failures) noexcept nogil:
    """Empties the list."""
    cdef Failure *failure = failures.first
    cdef Failure *next
    while failure != NULL:
        next = failure.next
        failures.of_row[failure.row] = NULL
        free(failure)
        failure = next
    failures.first = failures.last = NULL


cdef void failures_free(Failures *failures) noexcept nogil:
    """Frees the list's memory."""
    failures_clear(failures)
    free(failures.of_row)
    failures.of_row = NULL
