# cython: language_level=3
"""The consumer's side of the core.

`BatchRing` starts the workers and hands out full batches. `_epoch.pyx` iterates over them.
"""

import atexit
import gc
# Its exit handler waits for processes, and must be registered before ours, so that it runs later.
import multiprocessing.util  # no-cython-lint
import warnings
import weakref

from fastbatch._text import counted
from fastbatch.errors import (
    BatchesHeldError, Closed, DataTimeout, ForkedError, SourceError
)
from fastbatch.orders import Linear

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport strerror

from fastbatch._bad_samples cimport BadSamples
from fastbatch._batch cimport Batch, Lease
from fastbatch._cache cimport set_up_cache
from fastbatch._core cimport (
    CLOSED, FOREVER, OK, Answer, process_number, queue_pop, queue_push, queue_try_pop
)
from fastbatch._outputs cimport choose_outputs, known_shapes
from fastbatch._indexes cimport save_indexes
from fastbatch._failures cimport Failure, failures_clear
from fastbatch._ring cimport (
    Ring, ring_delete, ring_dismantle, ring_new, ring_start, ring_stop, ring_wait, Slot,
    slot_number
)
from fastbatch._sequencer cimport batches_before, first_position
from fastbatch._slots cimport all_skipped, slot_again, slot_compact
from fastbatch._stages cimport TAKES, WAITS
from fastbatch._statistics cimport activity_of, counters_of, last_failure, traces_of
from fastbatch._trace cimport fb_trace_add
from fastbatch._transform cimport NativeTransform
from fastbatch._threads cimport (
    atomic_add, atomic_add64, atomic_get, atomic_set, atomic_set64, atomic_swap, now, pthread_mutex_lock,
    pthread_mutex_unlock
)
from fastbatch._contract cimport FB_UNCOUNTED, fb_codec, fb_source, take_source
from fastbatch.orders._order cimport FB_ORDER_CAPSULE, fb_order
from fastbatch._waiting cimport PyThreadState, come_back, go_away

cdef enum:
    SAVED_AFTER = 64  # batches: see _saves_now()

cdef double SLICE = 0.05  # seconds between a waiting Python thread's checks for signals
cdef double PATIENCE = 5.0  # seconds that close() waits for a worker that is stuck in a system call
cdef str BUSY = ("another thread is waiting for this loader's next batch, or a loop is, whose on_error function this "
                 "is; a loader has one consumer at a time")

# Weak references by address, without callbacks. A callback would be a Python function, in which a signal handler may
# raise while a ring is collected, and such an exception is lost. Every change is a single step in C.
cdef dict _rings = {}


def _close_all(references):
    """Closes the objects of these weak references, then raises the first error."""
    first_error = None
    for reference in references:
        ring = reference()
        if ring is None:
            continue
        try:
            ring.close()
        except BaseException as error:  # including Ctrl-C
            first_error = first_error or error
    if first_error is not None:
        raise first_error


@atexit.register
def _close_all_rings():
    # Before the interpreter finalizes: afterwards, the memory of a mapped array may be gone while a worker reads it.
    _close_all(list(_rings.values()))


# Rings with a worker that did not return in time. Each also holds a reference to itself.
cdef list _left_behind = []


cdef int collect_left_behind() except -1:
    """Releases the rings whose last worker has returned since.

    The worker has freed its memory, but it cannot free Python objects.
    """
    cdef BatchRing ring
    for ring in list(_left_behind):
        if ring.owner == process_number() and ring_dismantle(ring.ring) and ring in _left_behind:
            _left_behind.remove(ring)
            ring._let_go(False)
            Py_DECREF(ring)
    return 0


@cython.final
@cython.no_gc_clear  # workers that were left behind read through the capsule
cdef class BatchRing:
    """The engine of `Loader` and the Caffe layers.

    Workers fill a ring of batches from a source, and `next` hands the batches out in order. The callers check the
    parameters; see `Loader` for their meaning.

    source
        An object with `__fastbatch_source__(random_access)`, which returns a PyCapsule of an fb_source.
    batch_size, slots, threads : int
        Samples in a batch; batches in the ring; worker threads.
    transform : Transform or None
        Applied to its `fields`. None: every field keeps its type.
    label_dtype : str
        The type of an integer field named "label" in the batch: "int64" (uint64 stays uint64), or "float32".
    float32 : bool
        Whether all arrays are float32, as Caffe's blobs are.
    order : Order or None
        The order of the samples, and their random numbers: see `fastbatch.orders`. None: `Linear()`. `in_batches` makes
        the orders of loaders that drop or fill the last batch of an epoch.
    epoch, batch
        The first epoch, and the first batch of it: as for `start_epoch`.
    on_error : "raise", "skip", "replace", or callable
        What becomes of a sample that cannot be loaded. See `Loader`.
    error_budget : int, float or None
        The number of samples that may be skipped or replaced, or, below 1, their share.
    seed : int
        Of the choice of replacements.
    cache_bytes : int or None
        The memory for decoded images. See `Loader`.
    cache_folder : bytes or None
        The folder of a file that holds them instead.
    stays_mapped : bool
        The addresses of batches stay readable until this object is gone. Those of batches released long ago then show
        other values, or zeros.

    Thread-safety: one thread at a time may be in `next`; a second one gets an error. Any thread may call `close` and
    `stats` at any time.
    """

    def __cinit__(self, *args, **kwargs):
        self.owner = process_number()
        self.orders = []
        self.bad = BadSamples()

    def __init__(self, source, *, batch_size, slots, threads, transform=None, label_dtype="int64", order=None,
                 epoch=0, batch=0, stays_mapped=False, float32=False, on_error="raise", error_budget=None,
                 seed=0, cache_bytes=None, cache_folder=None):
        cdef fb_source given
        cdef fb_codec codec
        cdef fb_source *native
        cdef const fb_order *native_order
        cdef Ring *ring
        cdef int i
        if self.ring != NULL:
            raise RuntimeError("a BatchRing cannot be initialized twice")
        order = Linear() if order is None else order
        may_replace = on_error == "replace" or callable(on_error)
        collect_left_behind()
        self.source = source
        if hasattr(source, "__fastbatch_team__"):
            self.team = source.__fastbatch_team__(order.random_access or may_replace, threads, on_error != "raise")
            self.capsule = self.team.capsule()
        else:
            self.capsule = source.__fastbatch_source__(order.random_access or may_replace)
        take_source(source, self.capsule, &given, &codec)
        native = &given
        self.source_name = native.name.decode("utf-8", "replace")
        self.names = tuple([native.fields[i].name.decode() for i in range(<int>native.field_count)])
        if native.count == FB_UNCOUNTED and (order.needs_count or may_replace or cache_bytes is not None):
            if not hasattr(source, "__len__"):
                raise TypeError(f"{type(source).__name__} does not know how many samples it has (FB_UNCOUNTED), and "
                                "this order needs to: give it a __len__")
            native.count = len(source)
        if native.count == 0:
            raise SourceError(f"{self.source_name} is empty; a loader needs at least one sample")
        for name in () if transform is None else transform.fields + transform.boxes + transform.points:
            if name not in self.names:
                raise ValueError(f"a transform changes the array {name!r}, which {self.source_name} does not have: its "
                                 "arrays are "
                                 + ", ".join(self.names))
        if transform is not None and native.read == NULL:
            raise ValueError(f"no transform can be applied to {self.source_name}, which writes its samples into the "
                             "batch itself")
        native_order = self._take_order(order, native.count)

        if native_order.count:  # no batch holds more than an epoch, unless epochs have no ends
            batch_size = min(batch_size, native_order.count)
        ring = ring_new(slots, threads, batch_size)
        if ring == NULL:
            raise MemoryError(f"no memory for the bookkeeping of {counted(slots, 'batch')} of "
                              f"{counted(batch_size, 'sample')} and of {counted(threads, 'thread')}")
        self.ring = ring
        ring.source = given
        ring.codec = codec
        ring.outputs_count = <int>native.field_count
        ring.writes = native.write != NULL and (native.read == NULL or transform is None)
        ring.announces = ring.writes and native.announce != NULL
        for i in range(slots):
            # Addresses stay valid until the ring is deleted, even after their pages are freed: Caffe exposes them.
            ring.slots[i].memory.stays_mapped = stays_mapped
            ring.slots[i].memory.shared = given.shared_batches and ring.writes
        ring.order = ring.wanted_order = native_order
        ring.pure = native_order.pure_at != NULL
        ring.expects = ring.pure and native.expect != NULL and not ring.writes
        ring.batch_size = batch_size
        ring.tolerant = on_error != "raise"
        ring.replaces = on_error == "replace"
        ring.seed = ring.wanted_seed = self.seed = seed
        self.bad.set_up(ring, self.source_name, self.team, on_error, error_budget)
        ring.epoch_samples = (native_order.real if native_order.count
                              else native_order.cycle // native_order.stride if native_order.cycle
                              else native.count if native.count != FB_UNCOUNTED else 0)
        self._begin_at(epoch, batch)
        self.transform = NativeTransform(transform, native_order.caffe_draws)
        ring.transform = (<NativeTransform>self.transform).native
        choose_outputs(ring, source, self.names, self.source_name, transform, label_dtype, float32)
        if cache_bytes is not None:
            set_up_cache(ring, source, self.source_name, cache_bytes, cache_folder)
        self.start(threads)

    cdef int _begin_at(self, uint64_t epoch, uint64_t batch) except -1:
        """Sets the first batch, before there are workers."""
        cdef Ring *ring = self.ring
        self._number_batch(&epoch, &batch)
        ring.epoch = self.epoch = self.taken_epoch = self.saved_epoch = epoch
        ring.batch = self.taken_batches = batch
        ring.position = first_position(ring)
        self.saved_after = SAVED_AFTER
        return 0

    cdef int _number_batch(self, uint64_t *epoch, uint64_t *batch) except -1:
        """Numbers a batch beyond the last one of its epoch by the epoch in which it begins, or refuses it."""
        cdef uint64_t number, step
        if self.order.count and batch[0] >= self.batches(epoch[0]):
            raise ValueError(f"an epoch of {counted(self.order.count, 'sample')} has no batch {batch[0]}")
        if self.order.cycle:
            step = self.ring.batch_size * self.order.stride
            number = batches_before(self.order, self.ring.batch_size, epoch[0]) + batch[0]
            epoch[0] = number * step // self.order.cycle
            batch[0] = number - batches_before(self.order, self.ring.batch_size, epoch[0])
        return 0

    cdef const fb_order *_take_order(self, order, uint64_t count) except NULL:
        """The order over this many samples. Older ones stay alive, because workers may still be asking them."""
        self.orders.append(order.__fastbatch_order__(None if count == FB_UNCOUNTED else count))
        self.order = <const fb_order *>PyCapsule_GetPointer(self.orders[-1], FB_ORDER_CAPSULE)
        return self.order

    @property
    def shapes(self):
        """The arrays' shapes without the first axis, in order; None for one that is known only with its batch."""
        return known_shapes(self.ring)

    cdef int start(self, int threads) except -1:
        cdef int problem
        with nogil:
            problem = ring_start(self.ring, threads)
        if problem:
            self.close()
            raise RuntimeError(f"only {self.ring.workers_count} of {counted(threads, 'thread')} could be started: "
                               f"{strerror(problem).decode()}; ask for fewer with threads=, or raise the limit of "
                               "processes (ulimit -u)")
        _rings[<size_t><void *>self] = weakref.ref(self)
        return 0

    # For the consumer

    cdef int check_ours(self) except -1:
        if self.ring == NULL:
            raise Closed("BatchRing was not initialized")
        if process_number() != self.owner:
            raise ForkedError("this loader was made before a fork, and its threads stayed with the parent process: "
                              "make the loader in the child")
        return 0

    cdef int check_usable(self) except -1:
        self.check_ours()
        if atomic_get(&self.ring.stop):
            raise Closed(f"the loader of {self.source_name} is closed")
        return 0

    cdef bint usable(self) noexcept:
        """Whether it belongs to this process, and is not closed."""
        return self.ring != NULL and process_number() == self.owner and not atomic_get(&self.ring.stop)

    def check(self):
        """Raises Closed or ForkedError if `next` would."""
        self.check_usable()

    def next(self, timeout=None):
        """The next batch in order, as a `Batch`, as soon as it is full. None if all of its samples were skipped.

        timeout: seconds; None waits as long as it takes. Signals are handled within 50 ms.

        Raises
        ------
        SampleError
            A sample of this batch failed; the next call gives the following batch.
        TooManyErrors
            More samples failed than `error_budget` allows, or no sample of an epoch could be loaded.
        SourceError
            The source as a whole can no longer be read. Every later call raises it again.
        Closed
            The ring was closed, before or during the wait.
        DataTimeout
            No batch became full in time. Nothing is lost.
        BatchesHeldError
            The caller holds every batch (with a timeout: for all of it).
        ForkedError
            This is a child of the process that made the ring.
        RuntimeError
            Another thread is in `next`.
        """
        cdef Ring *ring = self.ring
        cdef Slot *slot
        cdef Lease lease
        cdef Batch batch
        self.check_usable()
        if atomic_swap(&ring.consuming, 1):
            raise RuntimeError(BUSY)
        try:
            if self.bad.lost is not None:
                raise SourceError(self.bad.lost)
            if self._saves_now():
                self._save_indexes(quiet=False)
            # Created before a slot is taken, so that running out of memory here loses no batch.
            lease = Lease.__new__(Lease)
            batch = Batch.__new__(Batch)
            bare = None
            while True:
                slot = self.troubled if self.troubled != NULL else self._wait(timeout)
                # From here to the end, no Python code runs, except while the slot is `troubled`. A signal handler that
                # raised in it would leak the slot.
                if slot.failures.first != NULL or slot.unrecorded:
                    self.troubled = slot
                    problem = self.bad.settle(slot, self)
                    if problem is None and slot.last and not self.delivered and all_skipped(slot):
                        bare = self.bad.too_many(f"no sample of epoch {slot.epoch} of {self.source_name} could be "
                                                 "loaded")
                    # From here on again, no Python code runs.
                    if problem is not None:
                        self._drop(slot)
                        raise problem
                    self.troubled = NULL
                    if slot_again(ring, slot):
                        ring.expected_sequence -= 1
                        queue_push(ring.free, slot, FOREVER)
                        continue
                self._lease(slot, lease, batch)  # raises Closed: nobody gets the batch then
                self._took(slot)
                if slot.failures.first != NULL:
                    with nogil:
                        slot_compact(ring, slot)
                        failures_clear(&slot.failures)
                    batch.size = slot.size
                    batch.real = slot.real
                    self.bad.deliver()
                self.delivered = not slot.last and (self.delivered or batch.size > 0)
                if bare is not None:
                    raise bare
                return batch if batch.size else None
        finally:
            atomic_set(&ring.consuming, 0)

    @property
    def errors(self):
        """The first errors: see `Loader.errors`."""
        return list(self.bad.known)

    @property
    def skipped(self):
        """The number of samples that were skipped."""
        return self.bad.skipped

    @property
    def replaced(self):
        """The number of samples that were replaced."""
        return self.bad.replaced

    cdef bint _saves_now(self) noexcept:
        """Whether what indexes know is to be saved: an epoch has ended. Without epochs, ever more rarely.

        close() saves it, too. But nothing is closed where the `caffe` tool or the system ends the process.
        """
        if self.epoch != self.saved_epoch:
            self.saved_epoch = self.epoch
            return True
        if self.order.count or self.order.cycle or self.unsaved_batches < self.saved_after:
            return False
        self.unsaved_batches = 0
        self.saved_after *= 2
        return True

    cdef int _save_indexes(self, bint quiet) except -1:
        """Writes what the indexes of the source know now to their files, if they have some."""
        capsule = self.capsule  # close(), in another thread, lets go of it
        if capsule is not None:
            save_indexes(self.ring, quiet)
        return 0

    cdef void _took(self, Slot *slot) noexcept:
        """The consumer is behind this batch, which is delivered or given up."""
        self.epoch = slot.next_epoch if slot.last else slot.epoch
        self.taken_epoch = slot.epoch
        self.taken_batches = slot.batch + 1
        self.unsaved_batches += 1
        self.bad.seen += slot.size

    cdef int _drop(self, Slot *slot) except -1:
        """Gives up a batch."""
        self.troubled = NULL
        if self.bad.lost is None:
            self._took(slot)
            self.delivered = not slot.last
        self.bad.give_up()
        queue_push(self.ring.free, slot, FOREVER)
        return 0

    cdef Slot *_wait(self, timeout) except NULL:
        """The slot with the next sequence number. Holds the GIL only to check for signals."""
        cdef Ring *ring = self.ring
        cdef void *popped = NULL
        cdef Slot *slot
        cdef Answer answer
        cdef int64_t begin
        cdef double limit = -1 if timeout is None else timeout
        cdef double slice
        cdef bint collected = False
        cdef PyThreadState *state
        slot = self._next_in_order()
        begin = now()
        if slot != NULL:
            fb_trace_add(&ring.trace, begin, TAKES, slot_number(ring, slot))
            return slot
        fb_trace_add(&ring.trace, begin, WAITS, 0)
        atomic_set64(&ring.data_wait_since, begin)
        try:
            while True:
                # Every time: a signal handler may have closed the ring, or forked.
                self.check_usable()
                if self.team is not None:
                    self.team.tend()
                if atomic_get(&ring.leased) == ring.slots_count:
                    if not collected:
                        gc.collect()  # only a garbage cycle may keep a batch alive
                        collected = True
                        continue
                    if limit < 0 or now() - begin >= limit * 1e9:
                        raise BatchesHeldError(
                            f"all {ring.slots_count} batches of the ring are held by the caller, so none can be "
                            "filled: let go of earlier batches and of arrays from them (batch.release(), del, or copy "
                            "what you keep), or make the loader with a larger prefetch")
                slice = SLICE if limit < 0 else min(SLICE, max(limit - (now() - begin) * 1e-9, 0))
                state = go_away()
                answer = queue_pop(ring.full, &popped, slice)
                come_back(state)
                if answer == OK:
                    self._set_aside(<Slot *>popped)
                    slot = self._next_in_order()
                    if slot != NULL:
                        fb_trace_add(&ring.trace, now(), TAKES, slot_number(ring, slot))
                        return slot
                    continue
                if answer == CLOSED:
                    continue
                PyErr_CheckSignals()
                if limit >= 0 and now() - begin >= limit * 1e9 and atomic_get(&ring.leased) < ring.slots_count:
                    raise DataTimeout(f"no batch of {self.source_name} was ready within {limit:g} s; the workers: "
                                      + "; ".join(self.activity()))
        finally:
            atomic_set64(&ring.data_wait_since, 0)
            atomic_add64(&ring.data_wait, now() - begin)

    cdef void _set_aside(self, Slot *slot) noexcept:
        """Puts a full slot into the reorder buffer, or frees it if it was discarded."""
        cdef Ring *ring = self.ring
        if slot.generation != ring.expected_generation:
            queue_push(ring.free, slot, FOREVER)
            return
        ring.reorder[ring.reorder_count] = slot
        ring.reorder_count += 1

    cdef Slot *_next_in_order(self) noexcept:
        """The slot with the next sequence number, if it is in the reorder buffer."""
        cdef Ring *ring = self.ring
        cdef Slot *slot
        cdef int i
        for i in range(ring.reorder_count):
            slot = ring.reorder[i]
            if slot.sequence == ring.expected_sequence:
                ring.reorder_count -= 1
                ring.reorder[i] = ring.reorder[ring.reorder_count]
                ring.expected_sequence += 1
                return slot
        return NULL

    cdef Batch _lease(self, Slot *slot, Lease lease, Batch batch):
        """Initializes a new batch, which holds the slot from now on."""
        cdef Ring *ring = self.ring
        cdef bint closing
        pthread_mutex_lock(&ring.control)
        closing = ring.closing
        slot.leased = not closing
        pthread_mutex_unlock(&ring.control)
        if closing:
            raise Closed(f"the loader of {self.source_name} is closed")
        atomic_add(&ring.leased, 1)
        lease.owner = self
        lease.ring = ring
        lease.process = self.owner
        lease.slot = slot
        batch.lease = lease
        batch.names = self.names
        batch.epoch = slot.epoch
        batch.number = slot.batch
        batch.size = slot.size
        batch.real = slot.real
        return batch

    def start_epoch(self, uint64_t epoch, uint64_t batch=0):
        """Continues at the beginning of this epoch, or of one of its batches.

        If epochs begin within batches, batches are counted on beyond the last one of an epoch.

        Discards the batches that are ready or being filled.
        """
        cdef Ring *ring = self.ring
        cdef void *slot = NULL
        cdef int i
        self.check_usable()
        self._number_batch(&epoch, &batch)
        if atomic_swap(&ring.consuming, 1):
            raise RuntimeError(BUSY)
        pthread_mutex_lock(&ring.control)
        ring.wanted_order = self.order
        ring.wanted_seed = self.seed
        ring.wanted_epoch = epoch
        ring.wanted_batch = batch
        atomic_add(&ring.wanted_generation, 1)
        ring.expected_generation = ring.wanted_generation
        pthread_mutex_unlock(&ring.control)
        ring.expected_sequence = 0
        self.epoch = self.taken_epoch = epoch
        self.taken_batches = batch
        self.delivered = batch > 0  # earlier ones were, perhaps by another process
        self.bad.forget()
        self.bad.forget_causes()
        if self.troubled != NULL:
            queue_push(ring.free, self.troubled, FOREVER)
            self.troubled = NULL
        for i in range(ring.reorder_count):
            queue_push(ring.free, ring.reorder[i], FOREVER)
        ring.reorder_count = 0
        while queue_try_pop(ring.full, &slot) == OK:
            self._set_aside(<Slot *>slot)  # a worker may already have filled a slot of this epoch
        atomic_set(&ring.consuming, 0)

    def end_epoch(self, uint64_t epoch):
        """Continues at the beginning of the next epoch, unless this one is already over.

        The position stays where the consumer left the epoch, until begin_epoch() or next().
        """
        cdef uint64_t taken_epoch = self.taken_epoch
        cdef uint64_t taken_batches = self.taken_batches
        if self.epoch == epoch:
            self.start_epoch(epoch + 1)
            self.taken_epoch = taken_epoch
            self.taken_batches = taken_batches

    def begin_epoch(self):
        """The consumer begins the epoch that comes next. Returns its number."""
        if self.taken_epoch != self.epoch:
            self._pass_epoch()
        return self.epoch

    cdef void _pass_epoch(self) noexcept:
        """The consumer has reached the end of an epoch, and the beginning of the one that comes next."""
        self.taken_epoch = self.epoch
        self.taken_batches = 0

    @property
    def position(self):
        """Where the consumer is: an epoch, and the number of its batches that were taken."""
        return self.taken_epoch, self.taken_batches

    @property
    def taken(self):
        """The number of batches of all epochs before the consumer's position, if epochs have no ends."""
        return (batches_before(self.order, self.ring.batch_size, self.taken_epoch) if self.order.cycle else 0) \
            + self.taken_batches

    @property
    def seeded(self):
        """Whether samples have random numbers of their own, which the seed fixes."""
        return bool(self.ring.source.seeded)

    def restore(self, uint64_t epoch, uint64_t batches, order=None, uint64_t seed=0):
        """Continues at a position, which may be the end of an epoch. Iterators from before are void.

        order, seed: replace the seed, with an order that differs in nothing else.
        """
        cdef const fb_order *before = self.order
        cdef uint64_t seed_before = self.seed
        self.check_usable()
        if order is not None:
            self._take_order(order, self.ring.source.count)
            self.seed = seed
        try:
            if self.order.count and batches >= self.batches(epoch):
                self.start_epoch(epoch + 1)
            else:
                self.start_epoch(epoch, batches)
        except BaseException:
            self.order = before
            self.seed = seed_before
            raise
        self.restored += 1
        self.taken_epoch = epoch
        self.taken_batches = batches

    def close(self):
        """Stops the workers and frees every batch that nobody holds.

        May be called twice, from any thread, in any state.

        A RuntimeWarning names each worker that is still in a system call after 5 s. Such a worker is left behind, with
        everything that it may touch. It frees the memory when it returns; the next ring that is created or closed
        releases the source. Ctrl-C interrupts the wait, and the workers continue to leave.
        """
        self._close(interruptible=True)

    cdef int _close(self, bint interruptible) except -1:
        cdef Ring *ring = self.ring
        cdef bint gone = False
        cdef int64_t begin = now()
        cdef PyThreadState *state
        if ring == NULL or process_number() != self.owner:
            return 0
        if self.left_behind:
            return collect_left_behind()
        with nogil:
            ring_stop(ring)
        while not gone and now() - begin < PATIENCE * 1e9:
            state = go_away()
            gone = ring_wait(ring, SLICE)
            come_back(state)
            if not gone and interruptible:
                PyErr_CheckSignals()
        stuck = [] if gone else self.activity()
        with nogil:
            gone = ring_dismantle(ring)
        if gone:
            self._let_go(interruptible)
        elif not self.left_behind:
            self.left_behind = True
            # The list alone is not enough: finalization empties it, and the worker may still wake up.
            Py_INCREF(self)
            _left_behind.append(self)
            warnings.warn(f"closing the loader of {self.source_name}: not stopped after {PATIENCE:g} s, and left "
                          "behind with its memory, which is freed when it comes back: "
                          + "; ".join(stuck), RuntimeWarning, stacklevel=2)
        return collect_left_behind()

    cdef int _let_go(self, bint interruptible) except -1:
        """Releases what the workers read. If it may not be interrupted, it runs no Python code."""
        if self.team is not None and interruptible:
            self.team.close()
        self._save_indexes(quiet=not interruptible)
        self.capsule = None  # ends the workers, if that has not happened
        self.source = None
        self.team = None
        return 0

    def __del__(self):
        # Not in __dealloc__: while this waits without the GIL, another thread may find the object in _rings, and must
        # get it alive.
        self._close(interruptible=False)

    def __dealloc__(self):
        cdef Ring *ring = self.ring
        _rings.pop(<size_t><void *>self, None)
        if ring == NULL or process_number() != self.owner:
            return
        if ring_dismantle(ring):
            ring_delete(ring)

    # For any thread, at any time

    @property
    def closed(self):
        """Whether close() was called."""
        return self.ring == NULL or bool(atomic_get(&self.ring.stop))

    @property
    def consuming(self):
        """Whether a thread is in next() now."""
        self.check_ours()
        return bool(atomic_get(&self.ring.consuming))

    @property
    def processes(self):
        """The ids of the processes that load samples."""
        return [] if self.team is None else self.team.processes

    @property
    def count(self):
        """The number of samples in an epoch; 0 if the order's epochs have no ends."""
        self.check_ours()
        return self.order.count

    @property
    def samples(self):
        """The number of samples in the source when the ring was made."""
        self.check_ours()
        return self.ring.source.count

    def batches(self, uint64_t epoch):
        """The number of batches that begin in an epoch; 0 if nobody counts them, as with Caffe's orders."""
        cdef const fb_order *order
        if self.ring == NULL:
            raise Closed("BatchRing was not initialized")
        order = self.order
        if order.cycle:
            return (batches_before(order, self.ring.batch_size, epoch + 1)
                    - batches_before(order, self.ring.batch_size, epoch))
        return (order.count + self.ring.batch_size - 1) // self.ring.batch_size

    def activity(self):
        """One sentence per worker about what it is doing, for error messages."""
        self.check_ours()
        return activity_of(self.ring)

    def traces(self):
        """The latest events of each worker, and last those of the consumer.

        Returns a list of lists of (seconds, what began, number): of a sample; of a slot and a batch; or 0.
        """
        self.check_ours()
        return traces_of(self.ring)

    def stats(self):
        """The counters behind `Loader.stats()`, as a dict."""
        cdef Failure *failure
        self.check_ours()  # in a child, a thread that does not exist there may hold a lock
        counters = counters_of(self.ring)
        failure = last_failure(self.ring)
        if failure != NULL:
            try:
                counters["last_error"] = str(self.bad.error_of(failure))
            finally:
                free(failure)
        counters["skipped"] = self.bad.skipped
        counters["replaced"] = self.bad.replaced
        return counters


@cython.final
@cython.auto_pickle(False)
cdef class Closer:
    """Closes a ring when this object is gone, even if somebody still holds batches of the ring.

    Ctrl-C arrives afterwards; in a Python `__del__` it would be lost.
    """

    def __init__(self, BatchRing ring not None):
        self.ring = ring

    def __del__(self):
        if self.ring is not None:
            self.ring._close(interruptible=False)
