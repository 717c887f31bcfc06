# cython: language_level=3
"""`CallbackSource`: samples that a native function of the user's own writes, without the GIL."""

import ctypes
import operator
from types import MappingProxyType

cimport cython
from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._contract import DTYPES
from fastbatch._contract cimport (
    FB_MANY, FB_MAX_FIELDS, FB_SOURCE_CAPSULE, fb_dtype, fb_dtype_size, fb_error, fb_fail, fb_field,
    fb_place, fb_record, fb_scratch_reserve, fb_source, fb_view, fb_worker
)
from fastbatch._pixels cimport fb_collate
from fastbatch.sources._samples import declared_fields, sample_count
from fastbatch.sources._subset import Subset

cdef enum:
    ALIGNMENT = 64

ctypedef int (*Function)(uint64_t index, void **arrays, char *error, void *context) noexcept nogil

cdef struct Reader:
    fb_source source
    fb_field fields[FB_MAX_FIELDS]
    size_t offsets[FB_MAX_FIELDS]  # of the fields in scratch memory
    size_t size
    Function function
    void *context


cdef char *reserve(const Reader *reader, fb_worker *worker, fb_error *error) noexcept nogil:
    """Memory for one sample; NULL if memory runs out."""
    cdef char *memory = <char *>fb_scratch_reserve(worker.scratch, reader.size)
    if memory == NULL:
        fb_fail(error, "no memory for a sample of %zu bytes", reader.size)
    return memory


cdef int call(const Reader *reader, const fb_record *record, void **arrays, fb_error *error) noexcept nogil:
    cdef int code
    error.text[0] = 0
    code = reader.function(record.index, arrays, error.text, reader.context)
    if code == 0:
        return 0
    error.text[sizeof(error.text) - 1] = 0
    if error.text[0] == 0:
        fb_fail(error, "the function returned %d", code)
    return -1


cdef void view_of(const Reader *reader, uint32_t number, char *memory, fb_view *view) noexcept nogil:
    """A view of one field of the sample that lies in scratch memory."""
    cdef const fb_field *field = &reader.fields[number]
    cdef int64_t stride = <int64_t>fb_dtype_size(field.dtype)
    cdef int axis
    view.data = memory + reader.offsets[number]
    view.dtype = field.dtype
    view.ndim = field.ndim
    for axis in range(field.ndim - 1, -1, -1):
        view.shape[axis] = field.shape[axis]
        view.strides[axis] = stride
        stride *= field.shape[axis]


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    """Has the sample written into scratch memory, from which it is transformed."""
    cdef const Reader *reader = <const Reader *>self
    cdef char *memory = reserve(reader, worker, error)
    cdef void *arrays[FB_MAX_FIELDS]
    cdef uint32_t i
    if memory == NULL:
        return -1
    for i in range(reader.source.field_count):
        view_of(reader, i, memory, &views[i])
        arrays[i] = <void *>views[i].data
    return call(reader, record, arrays, error)


cdef int write(void *self, const fb_record *record, fb_worker *worker, const fb_place *places,
               fb_error *error) noexcept nogil:
    """Has the sample written into the batch. A label whose type the batch changes is converted on the way."""
    cdef const Reader *reader = <const Reader *>self
    cdef char *memory = NULL
    cdef void *arrays[FB_MAX_FIELDS]
    cdef fb_view view
    cdef uint32_t i
    for i in range(reader.source.field_count):
        arrays[i] = places[i].data
        if places[i].dtype != reader.fields[i].dtype:
            if memory == NULL:
                memory = reserve(reader, worker, error)
            if memory == NULL:
                return -1
            arrays[i] = memory + reader.offsets[i]
    if call(reader, record, arrays, error) != 0:
        return -1
    for i in range(reader.source.field_count):
        if places[i].dtype != reader.fields[i].dtype:
            view_of(reader, i, memory, &view)
            fb_collate(&view, <char *>places[i].data, places[i].dtype, NULL)
    return 0


cdef void delete(object capsule) noexcept:
    take_owner(capsule)
    free(PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE))


cdef bint calls_python(function) except -1:
    """Whether a ctypes function was made of a Python function, and not of a library's or of an address.

    What a ctypes object keeps alive is in its `_objects`: of such a function, the thunk that calls Python. A cast hands
    it on.
    """
    return any([type(kept).__name__ == "CThunkObject" for kept in (function._objects or {}).values()])


cdef size_t address_of(function) except 0:
    """The address of a native function: an int, a ctypes function, a numba cfunc, or a capsule."""
    cdef size_t address
    if PyCapsule_CheckExact(function):
        return <size_t>PyCapsule_GetPointer(function, PyCapsule_GetName(function))
    if hasattr(function, "address"):  # numba
        address = function.address
    elif isinstance(function, ctypes._CFuncPtr):
        if calls_python(function):
            raise TypeError(f"{function!r} was made of a Python function, which needs the GIL, and whose exceptions "
                            "ctypes only prints: give the Python function itself to PythonSource")
        address = ctypes.cast(function, ctypes.c_void_p).value or 0
    elif callable(function):
        raise TypeError(f"{function!r} is a Python function, which needs the GIL: PythonSource is for those")
    elif isinstance(function, bool) or not hasattr(function, "__index__"):
        raise TypeError("function must be a function of a library that ctypes has loaded, a numba cfunc, a capsule, or "
                        f"an address, not {function!r}")
    else:
        address = operator.index(function)
    if address == 0:
        raise ValueError("the function has the address 0")
    return address


@cython.final
cdef class CallbackSource:
    """Samples that a native function writes, which all worker threads call in parallel, without the GIL.

    ::

        int load(uint64_t index, void **arrays, char *error, void *context);

    It writes sample `index` to `arrays[0]`, `arrays[1]`, ..., one for each field: contiguous, aligned to the element,
    and not cleared. It returns 0; or another number, after it has written a sentence of at most 511 bytes to `error`.

    Parameters
    ----------
    function
        A function of a library loaded by `ctypes`, a numba `cfunc`, a PyCapsule, or an address, such as
        `<size_t>&load` in Cython. It must not call Python: a Python function that `ctypes` has wrapped is refused.
    fields : dict of str to (dtype, shape)
        The arrays of a sample.
    count : int
        The number of samples.
    context : int, optional
        The address that the function gets as its last argument. By default 0.
    owner : object, optional
        What must stay alive while the function may be called, such as the library, or the memory at `context`.

    Raises
    ------
    TypeError, ValueError
        A parameter is of the wrong type or out of range.

    Notes
    -----
    The function lies wherever the compiler put it: a wrong signature or address crashes.

    The source is immutable; any number of loaders may read it at once.
    """

    cdef size_t function
    cdef size_t context
    cdef object owner
    cdef uint64_t count
    cdef readonly object fields
    """The arrays of a sample: their types and shapes by name. Read-only."""

    def __init__(self, function, fields, count=None, *, context=0, owner=None):
        self.function = address_of(function)
        self.owner = (function, owner)
        if isinstance(context, bool) or not hasattr(context, "__index__"):
            raise TypeError(f"context must be an address, an integer, not {context!r}")
        self.context = operator.index(context)
        declared = declared_fields(fields)
        if count is None:
            raise TypeError("a native function does not say how many samples there are: give count=")
        number = sample_count(count)
        if number < 1:
            raise ValueError(f"count must be at least 1, not {number}; a loader needs at least one sample")
        self.count = number
        self.fields = MappingProxyType({name: (dtype, shape) for name, dtype, shape in declared})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Do nothing: the source holds no resources of its own."""

    @property
    def shape(self):
        """The shape of a sample's "data", or of its first array if none has that name."""
        return self.fields.get("data", next(iter(self.fields.values())))[1]

    def __len__(self):
        """Return the number of samples."""
        return self.count

    def __getitem__(self, indices):
        """Return the `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    def __reduce__(self):
        raise TypeError("a CallbackSource has the address of a function, which is another one in another process, so "
                        "it cannot be pickled or copied: make another one there")

    def __repr__(self):
        return "CallbackSource(" + ", ".join(f"{name}: {dtype} {shape}"
                                             for name, (dtype, shape) in self.fields.items()) + ")"

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h)."""
        cdef Reader *reader = <Reader *>calloc(1, sizeof(Reader))
        cdef size_t bytes
        cdef int i, axis
        if reader == NULL:
            raise MemoryError()
        names = [name.encode() for name in self.fields]
        capsule = source_capsule(&reader.source, delete, (self.owner, names))
        for i, (dtype, shape) in enumerate(self.fields.values()):
            reader.fields[i].name = <const char *>names[i]
            reader.fields[i].dtype = <fb_dtype><int>DTYPES.index(dtype)
            reader.fields[i].ndim = len(shape)
            bytes = dtype.itemsize
            for axis in range(len(shape)):
                reader.fields[i].shape[axis] = shape[axis]
                bytes *= shape[axis]
            reader.offsets[i] = reader.size
            reader.size += (bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        begin_source(&reader.source, reader, b"callback", self.count, reader.fields, len(names))
        reader.source.read = read
        reader.source.write = write
        reader.source.at_once = FB_MANY
        reader.source.converts = 1
        reader.function = <Function>self.function
        reader.context = <void *>self.context
        return capsule
