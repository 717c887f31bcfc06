# cython: language_level=3
"""Access to the loaded libcaffe: the memory of tops, whether anyone can still read it, and random draws.

Building this file requires nothing of Caffe or Boost. Functions are looked up by their mangled names. The object
layouts it depends on are written down here, and every Top verifies them on its own blob, with one number, before it
relies on them. If anything is not as expected, batches are copied, and `Top.reason` says why.

Sources of the layouts: Caffe's include/caffe/blob.hpp and syncedmem.hpp, Boost's python/object/instance.hpp,
python/instance_holder.hpp and smart_ptr/detail/sp_counted_base_*.hpp.

Thread-safety: everything here is called with the GIL held; a Top's set() by the thread that runs its net.
"""

cimport cython
import math

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.limits cimport INT_MAX
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, strcmp

from fastbatch.caffe.runtime._dynsym cimport Dl_info, dladdr, peek, pycaffes_extension, symbol


cdef extern from *:  # built into gcc and clang
    const int __ATOMIC_ACQUIRE, __ATOMIC_ACQ_REL
    int __atomic_load_n(int *, int) noexcept nogil
    int __atomic_add_fetch(int *, int, int) noexcept nogil


# Functions of libcaffe. A C++ member function is called as a C function whose first argument is the object: that is the
# C++ ABI of Linux on x86-64 and arm64.

ctypedef void (*SetCpuData)(void *blob, float *data) noexcept nogil
ctypedef float *(*MutableCpuData)(void *blob) noexcept nogil
ctypedef unsigned int (*RngRand)() noexcept nogil

cdef SetCpuData set_cpu_data = NULL
cdef MutableCpuData mutable_cpu_data = NULL
cdef RngRand caffe_rng_rand = NULL
cdef bint looked_up = False


cdef int look_up() except -1:
    """Look up the functions, once. Those that can't be found stay NULL."""
    global set_cpu_data, mutable_cpu_data, caffe_rng_rand, looked_up
    cdef void *extension
    if looked_up:
        return 0
    extension = pycaffes_extension()
    set_cpu_data = <SetCpuData> symbol(extension, b"_ZN5caffe4BlobIfE12set_cpu_dataEPf")
    mutable_cpu_data = <MutableCpuData> symbol(extension, b"_ZN5caffe4BlobIfE16mutable_cpu_dataEv")
    caffe_rng_rand = <RngRand> symbol(extension, b"_ZN5caffe14caffe_rng_randEv")
    looked_up = True
    return 0


def random_draw():
    """Take one number from Caffe's random stream of the calling thread, as Caffe's layers do when they are set up.

    Returns a 32-bit int, or None if this Caffe's caffe_rng_rand cannot be found.
    """
    look_up()
    if caffe_rng_rand == NULL:
        return None
    return caffe_rng_rand()


# Layouts of objects.

cdef struct SyncedMemory:  # the memory of a blob
    void *cpu_ptr


cdef struct Count:  # boost::detail::sp_counted_base: what all shared_ptrs to one object have in common
    void **methods  # the virtual ones: two destructors, dispose, destroy, ...
    int use
    int weak


cdef struct Blob:
    SyncedMemory *memory  # its first member, boost::shared_ptr<SyncedMemory> data_
    Count *count


ctypedef void (*CountMethod)(Count *count) noexcept nogil


cdef Blob *find_blob(object wrapper, const void *data) except? NULL:
    """The C++ object of a pycaffe Blob whose memory is known to be at `data`; NULL if it can't be found.

    In a Boost.Python object the list of weak references is followed by a pointer to the holder, and a holder begins
    with {virtual methods, next holder, Blob *}.
    """
    cdef Py_ssize_t[4] offsets = [type(wrapper).__weakrefoffset__ + sizeof(void *), 2 * sizeof(void *), 0, 0]
    cdef char *address = <char *> <PyObject *> wrapper
    cdef void *blob = NULL
    for step in range(4):  # to the holder, to the Blob, to its SyncedMemory, to the data
        if peek(address + offsets[step], &address, sizeof(void *)) != 0:
            return NULL
        if step == 1:
            blob = address
    return <Blob *> blob if <void *> address == data else NULL


cdef bint is_count(const Count *address) except -1:
    """Whether this is the count of a SyncedMemory with one shared_ptr. (Boost can be built with other counts.)"""
    cdef Count count
    cdef Dl_info info
    return (
        peek(address, &count, sizeof(Count)) == 0
        and count.use == 1 and count.weak == 1
        and dladdr(count.methods, &info) != 0 and info.dli_sname != NULL
        and strcmp(info.dli_sname, b"_ZTVN5boost6detail17sp_counted_impl_pIN5caffe12SyncedMemoryEEE") == 0
    )


@cython.final
cdef class Hold:
    """A shared_ptr to a blob's SyncedMemory. While it exists, uses() shows whether others have one."""

    cdef Count *count

    def __dealloc__(self):
        # What boost::detail::sp_counted_base::release() does, which isn't in every libcaffe.
        if self.count == NULL or __atomic_add_fetch(&self.count.use, -1, __ATOMIC_ACQ_REL) != 0:
            return
        (<CountMethod> self.count.methods[2])(self.count)  # dispose: deletes the SyncedMemory
        if __atomic_add_fetch(&self.count.weak, -1, __ATOMIC_ACQ_REL) == 0:
            (<CountMethod> self.count.methods[3])(self.count)  # destroy: deletes the count

    cdef int uses(self) noexcept:
        """The number of shared_ptrs, including this one."""
        return __atomic_load_n(&self.count.use, __ATOMIC_ACQUIRE)


cdef Hold take_hold(Count *count):
    cdef Hold hold = Hold.__new__(Hold)
    __atomic_add_fetch(&count.use, 1, __ATOMIC_ACQ_REL)
    hold.count = count
    return hold


cdef uintptr_t address_of(object array) except? 0:
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)
    return <uintptr_t> buffer.buf


cdef float[4] trial = [0.25, 0.0, 0.0, 0.0]  # the memory that a trial swaps into a blob


@cython.final
cdef class Top:
    """One top of a Python layer. Create it in setup(), before the top is given a shape.

    Top(blob, zero_copy=True): `blob` is `top[i]` as passed to setup(). With zero_copy, the blob points at the batches
    themselves, if a trial shows that this works. Otherwise batches are copied into it, and `reason` is the end of a
    sentence that says why ("batches are copied, because ..."). `reason` is None if they are not copied.

    The Blob belongs to the net, and pointers into it are valid only while the net lives. set() may therefore be called
    only in the layer's forward(). `in_use` may be read at any time, even when the net is gone.
    """

    cdef object blob
    cdef Blob *swapped  # NULL: batches are copied
    cdef bint can_hold
    cdef bint was_set
    cdef Hold hold
    cdef list older_holds
    cdef readonly object reason  # str or None

    def __init__(self, blob, bint zero_copy=True):
        self.blob = blob
        self.older_holds = []
        self.reason = self.try_zero_copy() if zero_copy else "zero_copy is switched off"
        if self.reason is not None:
            self.swapped = NULL

    @property
    def zero_copy(self):
        """True if the blob points at the batches, False if they are copied into it."""
        return self.swapped != NULL

    def set(self, uintptr_t address, tuple shape):
        """Give the blob this shape, and as its data the float32 values at `address`, in C order.

        With zero_copy, that memory must not change until the next set(); after the last set(), while it is `in_use`.
        """
        cdef Py_buffer buffer
        if address == 0:
            raise ValueError("a batch can't be at address 0")  # Caffe would abort
        if math.prod(shape) > INT_MAX:
            raise ValueError(f"a batch of shape {shape} has more values than a blob of Caffe's can have, {INT_MAX}: "
                             "use a smaller batch_size, or crop_size")
        # Even if the shape is unchanged: a user may have reshaped the blob in between, as is done with Input layers.
        self.blob.reshape(*shape)
        self.was_set = True
        if self.swapped != NULL:
            set_cpu_data(self.swapped, <float *> address)
            if self.can_hold:
                try:
                    self.update_hold()
                except MemoryError:  # set() has already swapped the memory, so it must succeed
                    self.can_hold = False
            return
        PyObject_GetBuffer(self.blob.data, &buffer, PyBUF_SIMPLE)
        with nogil:
            memcpy(buffer.buf, <const void *> address, buffer.len)
        PyBuffer_Release(&buffer)

    @property
    def in_use(self):
        """Whether anyone can still read the memory given to set(): the living net, or whoever keeps a blob of it.

        False if batches are copied. True if it can't be known, in a Caffe whose objects are not laid out as expected.
        """
        if self.swapped == NULL or not self.was_set:
            return False
        if not self.can_hold:
            return True
        self.forget_unused()
        return len(self.older_holds) > 0 or self.hold.uses() > 1

    @property
    def older_in_use(self):
        """Whether anyone can still read memory given to a set() before the last. False if it can't be known."""
        self.forget_unused()
        return len(self.older_holds) > 0

    cdef int update_hold(self) except -1:
        """Hold the blob's current SyncedMemory: set_cpu_data replaces it when the size changes.

        The blob of a Split layer may share the old one, and with it an older batch, until that layer runs again. The
        old one is therefore held until nobody else has it.
        """
        if self.hold is not None and self.hold.count == self.swapped.count:
            return 0
        if self.hold is not None:
            self.older_holds.append(self.hold)
        self.hold = take_hold(self.swapped.count)
        return self.forget_unused()

    cdef int forget_unused(self) except -1:
        cdef Hold hold
        if self.older_holds:
            self.older_holds = [hold for hold in self.older_holds if hold.uses() > 1]
        return 0

    cdef object try_zero_copy(self):
        """Swap memory in, check whether Caffe agrees, and give the blob its own memory. Returns the reason or None."""
        cdef object blob = self.blob
        cdef object data
        cdef bint agrees
        cdef Hold hold = None
        look_up()
        if set_cpu_data == NULL or mutable_cpu_data == NULL:
            return "this Caffe's set_cpu_data cannot be found"
        if blob.count != 0:
            # The swapped memory could be smaller than the blob's, and Caffe would not notice: it relies on capacity_.
            return "the blob had a shape before"
        blob.reshape(1)
        self.swapped = find_blob(blob, <const void *> address_of(blob.data))
        if self.swapped == NULL or <uintptr_t> mutable_cpu_data(self.swapped) != address_of(blob.data):
            return "pycaffe's Blob is not laid out as expected"
        set_cpu_data(self.swapped, trial)
        data = blob.data
        agrees = (
            address_of(data) == <uintptr_t> trial and mutable_cpu_data(self.swapped) == trial and data[0] == trial[0]
            and blob.count == 1 and tuple(blob.shape) == (1,) and data.shape == (1,)
        )
        if agrees and is_count(self.swapped.count):
            hold = take_hold(self.swapped.count)
        blob.reshape(2)  # larger than ever before, so Caffe allocates new memory and drops ours
        if not agrees or mutable_cpu_data(self.swapped) == trial:
            return "this Caffe's set_cpu_data does not do what is expected"
        # Now nobody else should hold that memory. If the count shows this, it can be trusted.
        self.can_hold = hold is not None and hold.uses() == 1
        return None


@cython.final
cdef class Showing:
    """What the tops of a layer show, and what they will show next; consistent even if forward() is interrupted.

    Showing(tops, keeps_older=False): `tops` are the layer's Tops. A lease given to show() must have a method release(),
    which is called when something else is shown. With keeps_older it is not called: the lease is kept for as long as a
    blob of another layer can read its memory (`Top.older_in_use`).

    Python runs signal handlers between two bytecode instructions. An exception that a handler raises, such as Ctrl-C's,
    can end forward() there. These methods contain no bytecode instruction. A batch is therefore either not taken, or
    taken and held for the next forward(), or shown by all tops. It is held before the first top points at it.
    """

    cdef tuple tops
    cdef list leases  # of each top, what it points at
    cdef list older
    cdef bint keeps_older
    cdef object taken
    cdef readonly object shown  # the lease that was given to show() last; None before
    cdef readonly object progress  # and its progress

    def __init__(self, tops, bint keeps_older=False):
        self.tops = tuple(tops)
        self.leases = [None] * len(self.tops)
        self.older = []
        self.keeps_older = keeps_older

    def take(self, source, *arguments):
        """The batch to show next: source(*arguments), unless an interrupted forward() has already taken one.

        `source` is compiled code: nothing can interrupt between its return and the storing of its result.
        """
        if self.taken is None:
            self.taken = source(*arguments)
        return self.taken

    @property
    def pending(self):
        """Whether a batch was taken and not shown, by an interrupted forward()."""
        return self.taken is not None

    def give_up(self):
        """Release a batch that was taken and not shown."""
        taken, self.taken = self.taken, None
        if taken is not None:
            taken.release()

    def show(self, lease, list arrays, progress=None):
        """Point each top at its array, an (address, shape), in memory that does not change while `lease` is held.

        progress: the new value of the attribute `progress`. If an array cannot be shown, for example because it is too
        large for a blob, some tops keep showing the previous batch, and this batch counts as shown.
        """
        cdef list before = list(self.leases)
        cdef Py_ssize_t number
        self.taken = None
        self.shown = lease
        self.progress = progress
        try:
            for number in range(len(self.tops)):
                address, shape = arrays[number]
                (<Top> self.tops[number]).set(address, shape)
                self.leases[number] = lease
        finally:
            self.let_go(before)

    cdef int let_go(self, list before) except -1:
        """Release what was shown before and is no longer shown."""
        for each in before:
            if each is None or any([each is lease for lease in self.leases]):
                continue
            if self.keeps_older:
                if not any([each is lease for lease in self.older]):
                    self.older.append(each)
            else:
                each.release()  # not left to its destructor: a traceback may hold the batch too
        if self.older and not any([(<Top> top).older_in_use for top in self.tops]):
            self.older.clear()
        return 0
