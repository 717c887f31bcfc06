"""The codec for JPEG and PNG: `codec()` is what other extensions cimport."""

from fastbatch._contract cimport fb_codec

cdef const fb_codec *codec() noexcept nogil
