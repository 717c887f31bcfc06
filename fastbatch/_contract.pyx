"""Checks of what sources and codecs pass in under the contract of _contract.pxd.

The structs of a source and its codec are checked when a loader is created; a sample's views, when they arrive. The
module also has what sources of encoded images share.
"""

import numpy

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef uint64_t MOST_SAMPLES = <uint64_t>1 << 62


# By fb_dtype, in the notation of Python's struct. int64 is "l", not "q": NumPy has two types of that size on Linux, and
# numpy.int64 is "l".
cdef const char **FORMATS = [b"B", b"i", b"l", b"f", b"d", b"b", b"h", b"H", b"I", b"L", b"e", b"?"]

DTYPES = tuple(numpy.dtype(FORMATS[i].decode()) for i in range(12))
"""The element types that a batch can have, in the order of the C enum fb_dtype."""


cdef const char *dtype_format(fb_dtype dtype) noexcept nogil:
    """The type in the notation of the buffer protocol."""
    return FORMATS[<int>dtype]


cdef int take_source(object owner, object capsule, fb_source *source, fb_codec *codec) except -1:
    """Copies the fb_source of a capsule and its codec, as far as they extend; the rest is zero.

    Raises TypeError if something is wrong.

    `owner` is the object whose `__fastbatch_source__()` returned the capsule; messages begin with its type.
    """
    cdef const fb_source *given
    who = type(owner).__name__
    if not PyCapsule_IsValid(capsule, FB_SOURCE_CAPSULE):
        raise TypeError(f"{who}.__fastbatch_source__() must return a PyCapsule named 'fastbatch.source'")
    given = <const fb_source *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    if given.abi != FB_SOURCE_ABI:
        raise TypeError(f"{who} was compiled for version {given.abi} of fastbatch's source contract, this is version "
                        f"{FB_SOURCE_ABI}: compile it against the fastbatch.h of the installed fastbatch")
    copy_known(who, "fb_source", given, given.size, source, sizeof(fb_source))
    require(who, "fb_source", {"name": source.name != NULL, "fields": source.fields != NULL})
    if source.locate == NULL and source.count == FB_UNCOUNTED:
        raise TypeError(f"{who}: an fb_source without locate() cannot say where it ends, so its count must be known; "
                        "and it is FB_UNCOUNTED")
    if source.pure_locate and source.count == FB_UNCOUNTED:
        raise TypeError(f"{who}: with pure_locate, an fb_source knows its count; and it is FB_UNCOUNTED")
    if source.read == NULL and source.write == NULL:
        raise TypeError(f"{who}: an fb_source has read() or write(), and this one has neither")
    if source.shared_batches and source.write == NULL:
        raise TypeError(f"{who}: shared_batches is for write(), and this fb_source has read(): fastbatch itself then "
                        "writes the batch, and needs no shared memory")
    if source.count > MOST_SAMPLES and source.count != FB_UNCOUNTED:
        raise TypeError(f"{who} has {source.count} samples according to its fb_source; that is more than there can be")
    check_fields(who, source)
    memset(codec, 0, sizeof(fb_codec))
    if source.codec != NULL:
        check_codec(who, source, codec)
    return 0


cdef int copy_known(who, what, const void *given, uint32_t size, void *known, size_t room) except -1:
    """Copies a struct that states its own size.

    The bytes beyond `room` must be zero: this version does not know what they ask for.
    """
    cdef const char *bytes = <const char *>given
    cdef size_t i
    if size < 2 * sizeof(uint32_t):
        raise TypeError(f"{who}: the size of its {what} is {size}; it must be sizeof({what})")
    for i in range(room, size):
        if bytes[i]:
            raise TypeError(f"{who}: its {what} uses something that this fastbatch does not know: install the "
                            "fastbatch that it was compiled against")
    memset(known, 0, room)
    memcpy(known, given, min(<size_t>size, room))
    return 0


cdef int require(who, what, members) except -1:
    missing = [member for member, there in members.items() if not there]
    if missing:
        raise TypeError(f"{who}: its {what} has no {', no '.join(missing)}")
    return 0


cdef int check_fields(who, const fb_source *source) except -1:
    cdef const fb_field *field
    cdef uint32_t i
    cdef int axis
    if not 1 <= source.field_count <= FB_MAX_FIELDS:
        raise TypeError(f"{who} has {source.field_count} fields; a batch has 1 to {FB_MAX_FIELDS}")
    names = []
    for i in range(source.field_count):
        field = &source.fields[i]
        require(who, f"field {i}", {"name": field.name != NULL})
        try:
            name = field.name.decode()
        except UnicodeDecodeError:
            raise TypeError(f"{who}: the name of field {i}, {<bytes>field.name!r}, is not UTF-8") from None
        if not name or not name.isprintable():
            raise TypeError(f"{who}: field {i} cannot have the name {name!r}")
        if name in names:
            raise TypeError(f"{who}: the fields {names.index(name)} and {i} have the same name, {name!r}")
        names.append(name)
        if <uint32_t>field.dtype >= FB_ENCODED:
            encoded = "; images that are decoded on the way are uint8" if field.dtype == FB_ENCODED else ""
            raise TypeError(f"{who}: {name} has the dtype {<int>field.dtype}, which no array has{encoded}")
        if not -1 <= field.ndim <= FB_MAX_DIMS:
            raise TypeError(f"{who}: {name} has {field.ndim} dimensions; it can have {FB_MAX_DIMS}, or -1 if every "
                            "sample may have others")
        for axis in range(field.ndim):
            if field.shape[axis] < 0:
                raise TypeError(f"{who}: dimension {axis} of {name} is {field.shape[axis]}; no array has a negative "
                                "one")
        if field.ndim < 0 and source.read == NULL:
            raise TypeError(f"{who}: {name} has no shape that is known beforehand, which write() needs: give it one, "
                            "or use read()")
    return 0


cdef int check_codec(who, const fb_source *source, fb_codec *codec) except -1:
    cdef uint32_t i
    if source.codec.abi != FB_CODEC_ABI:
        raise TypeError(f"{who} brings a codec of version {source.codec.abi} of fastbatch's codec contract, this is "
                        f"version {FB_CODEC_ABI}: compile the codec against the header of the installed fastbatch")
    copy_known(who, "fb_codec", source.codec, source.codec.size, codec, sizeof(fb_codec))
    require(who, "fb_codec", {"open": codec.open != NULL, "close": codec.close != NULL, "begin": codec.begin != NULL,
                              "finish": codec.finish != NULL})
    require(who, "fb_source", {"decoding": source.decoding != NULL})
    check_decoding(who, source.decoding)
    if source.indexes != NULL:
        require(who, "fb_codec", {"use_index": codec.use_index != NULL})
    if source.decodings != NULL:
        for i in range(source.field_count):
            check_decoding(who, &source.decodings[i])
    return 0


cdef int check_decoding(who, const fb_decoding *decoding) except -1:
    if not FB_UNCHANGED <= <int>decoding.color <= FB_COLOR:
        raise TypeError(f"{who}: the color of its fb_decoding is {<int>decoding.color}; it is FB_UNCHANGED, FB_GRAY or "
                        "FB_COLOR")
    if decoding.new_height < 0 or decoding.new_width < 0 or (decoding.new_height == 0) != (decoding.new_width == 0):
        raise TypeError(f"{who}: its fb_decoding resizes to {decoding.new_height} x {decoding.new_width}; both are at "
                        "least 1, or 0 to keep the size")
    return 0


# ---- For workers -----------------------------------------------------------------------------------------------------

cdef bint check_view(const fb_field *field, const fb_view *view, fb_error *error) noexcept nogil:
    """Whether a view looks readable; sets *error if not.

    A field that read() left alone has data NULL and ndim -1.
    """
    cdef bint empty = False
    cdef int axis
    if view.data == NULL and view.ndim < 0:
        fb_fail(error, "the source shows nothing of its %s: read() left the view as it was", field.name)
    elif <uint32_t>view.dtype > FB_ENCODED:
        fb_fail(error, "the source shows its %s with the dtype %d, which does not exist", field.name, <int>view.dtype)
    elif not 0 <= view.ndim <= FB_MAX_DIMS:
        fb_fail(error, "the source shows its %s with %d dimensions; 0 to %d are possible", field.name, view.ndim,
                <int>FB_MAX_DIMS)
    elif view.dtype == FB_ENCODED and (view.ndim != 1 or (field.dtype != FB_UINT8 and field.dtype != FB_FLOAT32)):
        # A database may mix records of floats, such as its first, and encoded ones.
        fb_fail(error, "the source shows its %s as an encoded image, with %d dimensions: that has one, and belongs to "
                       "a field of uint8 or float32",
                field.name, view.ndim)
    else:
        for axis in range(view.ndim):
            if view.shape[axis] < 0:
                fb_fail(error, "the source shows its %s with %lld as the size of dimension %d", field.name,
                        <long long>view.shape[axis], axis)
                return False
            empty |= view.shape[axis] == 0
        if view.data != NULL or empty:
            return True
        fb_fail(error, "the source shows its %s at the address 0", field.name)
    return False


# ---- For sources of encoded images -----------------------------------------------------------------------------------

cdef const fb_codec *image_codec() except? NULL:
    """The codec for JPEG and PNG; NULL in a build without their libraries."""
    from fastbatch import _features

    if _features.problem("jpeg") is not None:
        return NULL
    return <const fb_codec *>PyCapsule_GetPointer(_features.require("jpeg").codec_capsule(), FB_CODEC_CAPSULE)


cdef int shape_of_encoded(const fb_codec *codec, const void *bytes, size_t size, const fb_decoding *decoding,
                          int64_t *shape, fb_error *error) noexcept nogil:
    """Reads an encoded image's header: channels, height and width of the decoded image. 0, or -1 with *error."""
    cdef fb_decoder *decoder = codec.open(NULL)
    cdef int code
    if decoder == NULL:
        return fb_fail(error, "no memory for a decoder")
    code = codec.begin(decoder, bytes, size, decoding, shape, error)
    codec.close(decoder)
    return code


cdef tuple size_of(object size):
    """(height, width) that images are resized to; (0, 0) for None."""
    from operator import index

    from fastbatch._files import quoted

    if size is None:
        return 0, 0
    try:
        if isinstance(size, bool):
            raise TypeError
        if hasattr(size, "__index__"):
            size = (size, size)
        height, width = [index(side) for side in size]
    except (TypeError, ValueError):
        raise TypeError(f"size is {quoted(size)}; it is a height and a width, two integers, or one integer for "
                        "both") from None
    if not (1 <= height < 2**31 and 1 <= width < 2**31):
        raise ValueError(f"size is {quoted(size)}; it is a height and a width, each at least 1 pixel")
    return height, width


cdef fb_color color_of(str name) except *:
    """OpenCV's flag for a color name of fastbatch."""
    if name == "color":
        return FB_COLOR
    if name == "gray":
        return FB_GRAY
    if name == "unchanged":
        return FB_UNCHANGED
    raise ValueError(f"color is {name!r}; it can be 'color', 'gray' or 'unchanged'")


cdef str name_of_color(fb_color color):
    """The color name of fastbatch for a flag of OpenCV."""
    return "color" if color == FB_COLOR else "gray" if color == FB_GRAY else "unchanged"
