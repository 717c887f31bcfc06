"""What becomes of a source's fields in the batches."""

from fastbatch._ring cimport Ring

cdef int choose_outputs(Ring *ring, source, tuple names, str source_name, transform, label_dtype,
                        bint float32) except -1
cdef list known_shapes(Ring *ring)
