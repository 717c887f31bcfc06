# cython: language_level=3
"""A batch that the caller holds.

`Lease`, `Field` and `Batch` hold one slot of the ring until its last view is gone.
"""

import collections.abc

import numpy

from fastbatch._text import counted

cimport cython
from cpython.buffer cimport (
    PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBuffer_IsContiguous, PyObject_GetBuffer
)

from fastbatch._contract cimport dtype_format, fb_dtype_size
from fastbatch._core cimport FOREVER, process_number, queue_push
from fastbatch._ring cimport Output, Ring, Shape, Slot, fb_keys_get, fb_sample_key
from fastbatch._slots cimport slot_empty
from fastbatch._threads cimport atomic_add, pthread_mutex_lock, pthread_mutex_unlock


@cython.final
@cython.no_gc_clear
cdef class Lease:
    """Holds a slot.

    Every view of a batch holds the lease. When the last view is gone, so is the lease, and the slot is free again.
    """

    def __dealloc__(self):
        """Does nothing in a child process, whose memory is its own copy."""
        cdef Ring *ring = self.ring
        cdef bint dismantled
        if self.owner is None or process_number() != self.process:
            return
        pthread_mutex_lock(&ring.control)
        self.slot.leased = False
        dismantled = ring.dismantled
        pthread_mutex_unlock(&ring.control)
        atomic_add(&ring.leased, -1)
        if dismantled:
            slot_empty(self.slot)
        else:
            queue_push(ring.free, self.slot, FOREVER)


@cython.final
cdef class Field:
    """One array of a batch, through the buffer protocol: contiguous, writable, 64-byte aligned."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef Slot *slot
        cdef Output *output
        if self.lease is None:
            raise BufferError("a Field is made by its batch")
        slot = self.lease.slot
        output = &self.lease.ring.outputs[self.number]
        buffer.buf = slot.memory.data + slot.offsets[self.number]
        buffer.obj = self
        buffer.len = <Py_ssize_t>(slot.strides[self.number] * slot.size)
        buffer.readonly = 0
        buffer.itemsize = <Py_ssize_t>fb_dtype_size(output.dtype)
        buffer.format = <char *>dtype_format(output.dtype) if flags & PyBUF_FORMAT else NULL
        buffer.ndim = slot.shapes[self.number].ndim + 1
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL
        if flags & PyBUF_F_CONTIGUOUS == PyBUF_F_CONTIGUOUS and not PyBuffer_IsContiguous(buffer, b"F"):
            raise BufferError("the arrays of a batch lie in C order")
        if flags & PyBUF_STRIDES != PyBUF_STRIDES:
            buffer.strides = NULL
        if not flags & PyBUF_ND:
            buffer.shape = NULL


cdef Field new_field(Lease lease, int number):
    cdef Field field = Field.__new__(Field)
    cdef Slot *slot = lease.slot
    cdef Shape *shape = &slot.shapes[number]
    cdef Py_ssize_t stride = <Py_ssize_t>fb_dtype_size(lease.ring.outputs[number].dtype)
    cdef int axis
    field.lease = lease
    field.number = number
    for axis in range(shape.ndim, 0, -1):
        field.shape[axis] = shape.sizes[axis - 1]
        field.strides[axis] = stride
        stride *= shape.sizes[axis - 1]
    field.shape[0] = slot.size
    field.strides[0] = stride
    return field


@cython.final
cdef class Batch:
    """A mapping from names to arrays, which hold the samples contiguously.

    `batch["data"]` or `batch.data` is one array, and `data, label = batch.values()` takes all of them in the order of
    `names`. `dict(batch)`, `items()`, `get()`, `in` and `f(**batch)` work as with a dict. As with a dict, iterating
    over a batch yields the names. `len(batch)` is the number of samples; `len(batch.names)` is the number of arrays.

    The arrays are views of memory that fastbatch reuses. They stay unchanged as long as the batch or any of its arrays
    (or a slice, memoryview or DLPack tensor made from one) is alive, even after the loader is closed. Copy what you
    keep beyond the loop; otherwise the ring runs out of batches. You may write into the arrays.

    `memoryview(batch)` and `numpy.from_dlpack(batch)` give the first array without a copy.

    Attributes
    ----------
    names : tuple of str
        The arrays' names.
    epoch, number : int
        The epoch in which the batch begins, and the batch's number within it, both from 0.
    real : int
        Of the samples, the first `real` are no repetitions. It is `len(batch)`, except in the last batch of an epoch
        that repeats samples to fill it (`last_batch="pad"` or `even="pad"`).

    Thread-safety: a batch may be passed to another thread. No thread may use a batch while another one calls `release`.
    """

    def __cinit__(self, *args, **kwargs):
        self.arrays = {}

    def __init__(self):
        raise TypeError("batches come from a Loader; they cannot be made")

    cdef int check_held(self) except -1:
        if self.lease is None:
            raise ValueError("this batch was released: its memory may hold other samples by now")
        return 0

    def __getitem__(self, name):
        """The array with this name, of shape (samples, ...). The KeyError lists the names that exist."""
        array = self.arrays.get(name)
        if array is None:
            self.check_held()
            if name not in self.names:
                raise KeyError(f"the batch has no {name!r}; it has {', '.join(self.names)}")
            array = self.arrays[name] = numpy.asarray(new_field(self.lease, self.names.index(name)))
        return array

    def __iter__(self):
        """Iterates over the names, as a dict does over its keys."""
        return iter(self.names or ())

    def keys(self):
        """The arrays' names. For the samples' keys in their source, see `sample_keys`."""
        return dict.fromkeys(self.names or ()).keys()

    def values(self):
        """The arrays, in the order of `names`: `data, label = batch.values()`."""
        return self._all().values()

    def items(self):
        """Pairs of a name and an array."""
        return self._all().items()

    def get(self, name, default=None):
        """The array with this name, or `default`."""
        return self[name] if name in self else default

    cdef dict _all(self):
        self.check_held()
        return {name: self[name] for name in self.names}

    def __dir__(self):
        return [*object.__dir__(self), *(self.names or ())]

    def __getattr__(self, name):
        if self.names is None or name not in self.names:
            raise AttributeError(f"the batch has no attribute or array {name!r}")
        return self[name]

    def __contains__(self, name):
        return self.names is not None and name in self.names

    def __len__(self):
        """The number of samples: batch_size, or fewer in an epoch's last batch, with `last_batch="partial"`."""
        return self.size

    @property
    def sample_keys(self):
        """The samples' keys, in order.

        A key is bytes, truncated to 511. If the source has no keys, it is the sample's index in the source, an int.
        """
        cdef fb_sample_key *sample
        cdef const char *key
        cdef size_t size
        cdef Py_ssize_t i
        if self.known_keys is None:
            self.check_held()
            keys = []
            for i in range(self.size):
                sample = &self.lease.slot.sample_keys[i]
                key = fb_keys_get(sample, &size)
                keys.append(sample.index if key == NULL else key[:size])
            self.known_keys = keys  # another thread must not find a part of them
        return self.known_keys

    cdef int check_number(self, int number) except -1:
        self.check_held()
        if not 0 <= number < len(self.names):
            raise IndexError(f"the batch has {counted(len(self.names), 'array')}, numbered from 0; there is no "
                             f"{number}")
        return 0

    def address(self, int number):
        """The address of array `number` (in the order of `names`), to pass to C.

        Valid while the batch is held.
        """
        self.check_number(number)
        return <size_t>(self.lease.slot.memory.data + self.lease.slot.offsets[number])

    @property
    def shapes(self):
        """The arrays' shapes by name. Creates no arrays."""
        return {name: self.shape_of(number) for number, name in enumerate(self.names or ())}

    def shape_of(self, int number):
        """The shape of array `number`, to pass to C."""
        cdef Shape *shape
        cdef int axis
        self.check_number(number)
        shape = &self.lease.slot.shapes[number]
        return (self.size, *[shape.sizes[axis] for axis in range(shape.ndim)])

    def release(self):
        """Releases the memory now instead of when the batch is collected.

        Arrays already taken from the batch stay valid and keep the memory.
        """
        self.arrays.clear()
        self.lease = None

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check_held()
        PyObject_GetBuffer(new_field(self.lease, 0), buffer, flags)  # the field holds it from now on, not this batch

    def __dlpack__(self, **kwargs):
        """The first array as a DLPack capsule; needs NumPy 1.22 or later."""
        return self[self.names[0]].__dlpack__(**kwargs)

    def __dlpack_device__(self):
        """(1, 0): CPU memory."""
        return self[self.names[0]].__dlpack_device__()

    def __reduce__(self):
        raise TypeError("a Batch is memory of its loader, and cannot be pickled or copied. Its arrays can: take "
                        "{name: array.copy() for name, array in batch.items()}")

    def __repr__(self):
        if self.lease is None:
            return "<fastbatch.Batch, released>"
        arrays = ", ".join(f"{name} {self[name].dtype} {self[name].shape}" for name in self.names)
        return f"<fastbatch.Batch {self.number} of epoch {self.epoch}: {arrays}>"


collections.abc.Mapping.register(Batch)
