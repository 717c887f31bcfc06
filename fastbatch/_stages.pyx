# cython: language_level=3
"""The names of what workers do, in statistics and in messages."""


cdef const char **STAGES = [
    b"start", b"wait for its turn", b"wait for a free batch", b"locate", b"read", b"decode",
    b"wait for the batch's first sample", b"collate", b"write", b"stopped",
    b"slot begun", b"slot full", b"wait for a batch", b"batch taken"
]


cdef const char *stage_name(int stage) noexcept nogil:
    return STAGES[stage]
