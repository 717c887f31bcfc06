# cython: language_level=3
"""`ArraySource`: arrays in memory or memory-mapped files, read in place."""

import numpy

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._contract cimport (
    FB_MANY, FB_MAX_DIMS, FB_MAX_FIELDS, FB_SOURCE_CAPSULE, fb_dtype, fb_error, fb_field, fb_record, fb_source,
    fb_view, fb_worker
)

from fastbatch._contract import DTYPES
from fastbatch.sources._subset import Subset


cdef struct Arrays:  # an fb_source and what it reads
    fb_source source
    fb_field fields[FB_MAX_FIELDS]
    Array arrays[FB_MAX_FIELDS]


cdef int take_array(bytes name, object array, Array *native, fb_field *field) except -1:
    """Describes an array that check_array() accepted for native code, which reads it in place.

    The caller keeps `name` and `array` alive.
    """
    cdef fb_view *item = &native.item
    cdef int axis
    item.dtype = <fb_dtype><int>DTYPES.index(array.dtype)
    item.ndim = array.ndim - 1
    for axis in range(item.ndim):
        item.shape[axis] = array.shape[axis + 1]
        item.strides[axis] = array.strides[axis + 1]
    native.step = array.strides[0]
    native.data = <const char *><size_t>array.__array_interface__["data"][0]
    field.name = name
    field.dtype = item.dtype
    field.ndim = item.ndim
    memcpy(field.shape, item.shape, sizeof(item.shape))
    return 0


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    cdef Arrays *arrays = <Arrays *>self
    cdef uint32_t i
    for i in range(arrays.source.field_count):
        show_sample(&arrays.arrays[i], record.index, &views[i])
    return 0


cdef void delete(object capsule) noexcept:
    take_owner(capsule)
    free(PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE))


def check_array(name, array):
    """Returns `array` as a NumPy array without a copy. Raises TypeError or ValueError if batches cannot hold it."""
    if not name.isprintable():
        raise ValueError(f"an array cannot have the name {name!r}: it holds characters that cannot be printed")
    if isinstance(array, numpy.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, and batches have no mask: "
                        f"say what to put where values are masked, with {name}.filled(...)")
    if isinstance(array, (list, tuple)):
        lengths = {len(each) for each in array if isinstance(each, (list, tuple)) or getattr(each, "ndim", 0)}
        if len(lengths) > 1:  # of which older NumPys would make an array of objects, with a warning
            raise ValueError(f"{name} holds values of different lengths, {min(lengths)} to {max(lengths)}, which make "
                             "no array: fill them up to the longest, and give their lengths as another array")
    array = numpy.asarray(array)
    if not 1 <= array.ndim <= FB_MAX_DIMS:
        raise ValueError(f"{name} has shape {array.shape}; it needs a first axis that counts samples, "
                         f"and at most {FB_MAX_DIMS} in all")
    if array.dtype not in DTYPES:
        advice = ""
        if array.dtype.kind in "USO":
            advice = f"; numpy.unique({name}, return_inverse=True)[1] makes a number of each string"
        raise TypeError(f"{name} has elements of type {array.dtype}; batches hold {', '.join(map(str, DTYPES))}, "
                        f"in the machine's own byte order: convert with astype(){advice}")
    return array


def check_arrays(named):
    """Returns a dict of the results of check_array(). Raises ValueError unless all have the same number of samples."""
    arrays = {name: check_array(name, array) for name, array in named.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if not 1 <= len(lengths) <= 16:
        raise ValueError(f"{len(lengths)} arrays; an ArraySource has 1 to 16")
    if len(set(lengths.values())) > 1:
        raise ValueError("the arrays have different numbers of samples: "
                         + ", ".join(f"{name} has {length}" for name, length in lengths.items()))
    if 0 in lengths.values():
        raise ValueError("the arrays are empty; a loader needs at least one sample")
    return arrays


def source_of(arrays):
    """Returns an ArraySource of a dict of arrays, for pickle."""
    return ArraySource(**arrays)


@cython.final
cdef class ArraySource:
    """Samples from arrays whose first axis counts the samples.

    Call it as `ArraySource(data, label)`, or as `ArraySource(data=..., label=..., weight=...)`.

    Parameters
    ----------
    data, label
        Arrays, or anything that numpy.asarray() accepts without a copy, such as memoryviews and numpy.memmap (the
        worker threads read its pages). Load an h5py data set with `[:]` first. Positional arguments are named "data"
        and "label".
    **arrays
        Any number of further arrays. Every batch holds an array of the same name for each.

    Raises
    ------
    ValueError
        No array is given, the arrays differ in length or have length 0, or an array has no first axis or more than 7
        axes after it.
    TypeError
        An array has an element type that batches do not have.

    Notes
    -----
    The arrays may have any strides. A slice costs no copy, and neither does `images.transpose(0, 3, 1, 2)` of images
    stored as height x width x channels. Element types are the integers of 8 to 64 bits, float16, float32, float64 and
    bool.

    The source keeps references to the arrays, and a loader reads them while it runs. Writing to an array meanwhile is a
    data race.

    The source is immutable; any number of loaders may read it at once.
    """

    cdef readonly dict arrays
    """The arrays by name."""

    def __init__(self, data=None, label=None, /, **arrays):
        named = {name: array for name, array in (("data", data), ("label", label)) if array is not None}
        for name in named:
            if name in arrays:
                raise ValueError(f"the array {name!r} is given twice, by position and by name")
        named.update(arrays)
        self.arrays = check_arrays(named)

    def __reduce__(self):
        return source_of, (self.arrays,)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Do nothing: the source holds no resources of its own."""

    @property
    def shape(self):
        """The shape of one sample's "data", or of its first array if none has that name."""
        return (self.arrays["data"] if "data" in self.arrays else next(iter(self.arrays.values()))).shape[1:]

    def __len__(self):
        """Return the number of samples."""
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, indices):
        """Return the `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    def __repr__(self):
        return "ArraySource(" + ", ".join(f"{name}: {array.dtype} {array.shape}"
                                          for name, array in self.arrays.items()) + ")"

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h) over these arrays.

        Random access costs nothing extra.
        """
        cdef Arrays *native
        cdef int i
        arrays = check_arrays(self.arrays)  # again, because the dict is mutable
        names = [name.encode() for name in arrays]
        native = <Arrays *>calloc(1, sizeof(Arrays))
        if native == NULL:
            raise MemoryError()
        owners = (names, list(arrays.values()))  # of the memory that the native structure points at
        capsule = source_capsule(&native.source, delete, owners)
        for i, (name, array) in enumerate(zip(names, arrays.values())):
            take_array(name, array, &native.arrays[i], &native.fields[i])
        begin_source(&native.source, native, b"arrays", len(arrays[next(iter(arrays))]), native.fields, len(names))
        native.source.read = read
        native.source.at_once = FB_MANY
        return capsule
