"""Arrays whose first axis counts the samples, as native code reads them."""

from libc.stdint cimport int64_t, uint64_t

from fastbatch._contract cimport fb_field, fb_view

cdef struct Array:
    const char *data
    int64_t step  # bytes from one sample to the next
    fb_view item  # one sample, without its address

cdef inline void show_sample(const Array *array, uint64_t index, fb_view *view) noexcept nogil:
    """Points a view at one sample's values."""
    view[0] = array.item
    view.data = array.data + <int64_t>index * array.step


cdef int take_array(bytes name, object array, Array *native, fb_field *field) except -1
