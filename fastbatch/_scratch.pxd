"""When memory that is reused from sample to sample is freed: one large record must not cost it forever."""

from libc.stdlib cimport free

from fastbatch._contract cimport fb_scratch

cdef enum:
    RECENT = 32  # samples between two looks at what they needed
    KEPT_BUFFER = 1024 * 1024  # bytes that may be kept although they are not needed


cdef inline void shrink_scratch(fb_scratch *scratch) noexcept nogil:
    """Frees memory that is far larger than what the samples since the last look took."""
    if scratch.size > KEPT_BUFFER and scratch.size // 4 > scratch.wanted:
        free(scratch.data)
        scratch.data = NULL
        scratch.size = 0
    scratch.wanted = 0
