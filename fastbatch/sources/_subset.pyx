# cython: language_level=3
"""`Subset`: chosen samples of a source."""

import numpy

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._contract cimport (
    FB_END, FB_SOURCE_CAPSULE, FB_UNCOUNTED, fb_codec, fb_error, fb_fail, fb_place, fb_record, fb_source, fb_view,
    fb_worker, take_source
)
from fastbatch._files import quoted
from fastbatch._text import counted, there_are
from fastbatch.errors import SourceError


cdef enum:
    FIRST = 16  # samples that say what samples look like


cdef struct Chosen:
    fb_source source
    fb_source parent
    const int64_t *indices  # NULL: first, first + step, first + 2 step, ...
    int64_t first
    int64_t step


cdef uint64_t index_of(const Chosen *chosen, uint64_t index) noexcept nogil:
    """The index of the parent's sample."""
    if chosen.indices != NULL:
        return <uint64_t>chosen.indices[index]
    return <uint64_t>(chosen.first + <int64_t>index * chosen.step)


cdef void expect(void *self, uint64_t index) noexcept nogil:
    cdef const Chosen *chosen = <const Chosen *>self
    chosen.parent.expect(chosen.parent.self, index_of(chosen, index))


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    """Replaces the index by that of the parent's sample. All that follows is the parent's."""
    cdef const Chosen *chosen = <const Chosen *>self
    cdef uint64_t index = index_of(chosen, record.index)
    cdef int code
    record.index = index
    if chosen.parent.locate == NULL:
        return 0
    code = chosen.parent.locate(chosen.parent.self, record, worker, error)
    if code == FB_END:
        error.fatal = 1
        return fb_fail(error, "the source has only %llu sample%s now, and the subset has its sample %llu",
                       <unsigned long long>record.index, b"" if record.index == 1 else b"s",
                       <unsigned long long>index)
    return code


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    cdef const Chosen *chosen = <const Chosen *>self
    return chosen.parent.read(chosen.parent.self, record, worker, views, error)


cdef int write(void *self, const fb_record *record, fb_worker *worker, const fb_place *places,
               fb_error *error) noexcept nogil:
    cdef const Chosen *chosen = <const Chosen *>self
    return chosen.parent.write(chosen.parent.self, record, worker, places, error)


cdef void announce(void *self, uint32_t number, const fb_record *record, fb_worker *worker,
                   const fb_place *places) noexcept nogil:
    cdef const Chosen *chosen = <const Chosen *>self
    chosen.parent.announce(chosen.parent.self, number, record, worker, places)


cdef void done(void *self, const fb_record *record, fb_worker *worker) noexcept nogil:
    cdef const Chosen *chosen = <const Chosen *>self
    chosen.parent.done(chosen.parent.self, record, worker)


cdef void delete(object capsule) noexcept:
    take_owner(capsule)
    free(PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE))


def count_of(source):
    """The number of samples of any source. Raises TypeError if it does not know it."""
    cdef fb_source native
    cdef fb_codec codec
    who = type(source).__name__
    if not hasattr(source, "__fastbatch_source__"):
        raise TypeError(f"Subset takes a source, not {quoted(source)}: arrays become one by ArraySource, a data set by "
                        "PythonSource")
    if hasattr(source, "__len__"):
        return len(source)
    capsule = source.__fastbatch_source__(True)
    take_source(source, capsule, &native, &codec)
    if native.count == FB_UNCOUNTED:
        raise TypeError(f"{who} does not know how many samples it has (FB_UNCOUNTED), so none can be chosen: give it a "
                        "__len__")
    return native.count


def choose(indices, count):
    """The samples that `indices` choose of `count`: a range, or an array of int64. None is negative or too large."""
    if isinstance(indices, slice):
        chosen = range(*indices.indices(count))
    elif isinstance(indices, range) and (len(indices) == 0 or min(indices[0], indices[-1]) >= 0
                                         and max(indices[0], indices[-1]) < count):
        chosen = indices
    else:
        chosen = array_of(indices, count)
    if len(chosen) == 0:
        raise ValueError(f"of {counted(count, 'sample')}, {quoted(indices)} chooses none; a loader needs at least one")
    return chosen


cdef object array_of(indices, count):
    what = "a slice, an array of integers, or a mask with True for each sample that is chosen"
    try:
        given = numpy.asarray(indices)
    except ValueError:  # of a list of lists
        given = numpy.empty((0, 0))
    if given.ndim == 0 and given.dtype.kind in "iu":
        raise TypeError(f"[{given}] would be a sample, and a source gives batches: source[[{given}]] is the source of "
                        "this sample alone, and Loader(source) gives batches")
    if given.ndim != 1 or given.dtype.kind not in "iub" and given.size:
        raise TypeError(f"samples are chosen by {what}, not by {quoted(indices)}")
    if given.dtype.kind == "b":
        if len(given) != count:
            raise IndexError(f"the mask has {counted(len(given), 'value')}, and the source {counted(count, 'sample')}")
        return numpy.flatnonzero(given).astype(numpy.int64)
    wrong = (given >= count) | (given < -count)
    if wrong.any():
        at = int(numpy.flatnonzero(wrong)[0])
        raise IndexError(f"index {given[at]} (the indices' number {at}) is out of range: "
                         f"{there_are(count, 'sample')}")
    chosen = given.astype(numpy.int64)
    return numpy.where(chosen < 0, chosen + count, chosen)


cdef object of_parent(inner, chosen):
    """The parent's samples that are chosen of a subset, whose samples of the parent are `inner`."""
    if isinstance(inner, range):
        if isinstance(chosen, range):
            return range(inner.start + inner.step * chosen.start, inner.start + inner.step * chosen.stop,
                         inner.step * chosen.step)
        return inner.start + inner.step * chosen
    return inner[numpy.arange(chosen.start, chosen.stop, chosen.step)] if isinstance(chosen, range) else inner[chosen]


cdef bint ascend(indices) except *:
    return indices.step > 0 if isinstance(indices, range) else bool((indices[1:] > indices[:-1]).all())


cdef bint are_dense(indices) except *:
    """Whether it is cheaper to read all samples up to the last one in order than to find each."""
    return indices[-1] < 2 * len(indices)


class SubsetTeam:
    """The workers of a subset's PythonSource, as a loader sees them."""

    def __init__(self, subset, team):
        self._subset = subset
        self._team = team

    def __getattr__(self, name):
        return getattr(self._team, name)

    def capsule(self):
        """A PyCapsule of the subset's fb_source."""
        return wrap(self._subset, self._team.capsule())


cdef object wrap(Subset subset, capsule):
    """A PyCapsule of the subset's fb_source, around that of its parent."""
    cdef fb_source parent
    cdef fb_codec codec
    cdef Chosen *chosen
    indices = subset.indices
    take_source(subset.source, capsule, &parent, &codec)
    last = max(indices[0], indices[-1]) if isinstance(indices, range) else int(indices.max())
    if parent.count != FB_UNCOUNTED and last >= parent.count:
        name = parent.name.decode("utf-8", "replace")
        raise SourceError(f"{name} has only {counted(parent.count, 'sample')} now, and the subset has its sample "
                          f"{last}")
    chosen = <Chosen *>calloc(1, sizeof(Chosen))
    if chosen == NULL:
        raise MemoryError()
    chosen.parent = parent
    if isinstance(indices, range):
        chosen.first, chosen.step = indices.start, indices.step
    else:
        chosen.indices = <const int64_t *><size_t>indices.__array_interface__["data"][0]
    begin_source(&chosen.source, chosen, parent.name, len(indices), parent.fields, parent.field_count)
    chosen.source.locate = locate
    chosen.source.pure_locate = parent.locate == NULL or parent.pure_locate
    if parent.read != NULL:
        chosen.source.read = read
    if parent.write != NULL:
        chosen.source.write = write
    if parent.announce != NULL:
        chosen.source.announce = announce
    if parent.done != NULL:
        chosen.source.done = done
    if parent.expect != NULL:
        chosen.source.expect = expect
    chosen.source.at_once = parent.at_once
    chosen.source.codec = parent.codec
    chosen.source.decoding = parent.decoding
    chosen.source.decodings = parent.decodings
    chosen.source.indexes = parent.indexes
    chosen.source.shared_batches = parent.shared_batches
    chosen.source.converts = parent.converts
    chosen.source.seeded = parent.seeded
    return source_capsule(&chosen.source, delete, (capsule, indices))


@cython.final
cdef class Subset:
    """Chosen samples of a source. `source[indices]` is the same as `Subset(source, indices)`.

    ::

        source = ImageFolderSource("images", size=256)
        chosen = numpy.random.default_rng(0).permutation(len(source))
        train, test = source[chosen[1000:]], source[chosen[:1000]]

    Parameters
    ----------
    source
        Any source, also a subset.
    indices : slice, sequence of int, or mask
        A slice or a range; or a sequence or array of integers, of which negative ones count from the end; or an array
        of bool with a value for each sample. The subset has the samples in this order. An index may occur more than
        once.

    Raises
    ------
    IndexError
        An index is out of range, or a mask has another length than the source.
    TypeError, ValueError
        Something else than indices is given, or nothing is chosen, or the source does not know its number of samples.

    Notes
    -----
    Samples keep their names: an error has the sample's key and index in `source`, and so has `Batch.sample_keys`.

    A slice takes no memory, and other indices 8 bytes each. The workers of a `PythonSource` load the chosen samples
    only.

    `close()` leaves the source open. The subset is immutable; any number of loaders may read it at once.
    """

    cdef readonly object source
    """The source; of a subset's subset, the one behind both."""
    cdef readonly object indices
    """The samples' indices in `source`: a range, or a read-only array of int64."""

    def __init__(self, source, indices):
        chosen = choose(indices, count_of(source))
        if isinstance(source, Subset):
            chosen = of_parent((<Subset>source).indices, chosen)
            source = (<Subset>source).source
        if not isinstance(chosen, range):
            chosen = numpy.array(chosen, dtype=numpy.int64)  # a copy: the caller may change theirs
            chosen.flags.writeable = False
        self.source = source
        self.indices = chosen

    @property
    def shape(self):
        """The shape of the first sample's data, as far as the source knows it."""
        return self.shape_of(0) if hasattr(self.source, "shape_of") else self.source.shape

    def shape_of(self, index):
        """The shape of sample `index`'s data, if the source has such a method."""
        if not 0 <= index < len(self):
            raise IndexError(f"the subset has {counted(len(self), 'sample')}, and no {index}")
        return self.source.shape_of(int(self.indices[index]))

    @property
    def workers(self):
        """The workers of a `PythonSource`; None for other sources."""
        return getattr(self.source, "workers", None)

    def __len__(self):
        """Return the number of samples."""
        return len(self.indices)

    def __getitem__(self, indices):
        """Return the `Subset` of these samples of the subset."""
        return Subset(self, indices)

    def __repr__(self):
        return f"Subset({self.source!r}, {counted(len(self), 'sample')})"

    def __reduce__(self):
        return Subset, (self.source, self.indices)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Do nothing: the source stays open, for other subsets of it."""

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h)."""
        in_order = not random_access and are_dense(self.indices) and ascend(self.indices)
        return wrap(self, self.source.__fastbatch_source__(not in_order))

    @property
    def __fastbatch_team__(self):
        """A function that starts the workers of a `PythonSource`; other sources have none."""
        start = self.source.__fastbatch_team__
        in_order = ascend(self.indices)

        def start_team(random_access, threads, tolerant, indices=()):
            chosen = [self.indices[int(index)] for index in indices[:FIRST]] if len(indices) else self.indices[:FIRST]
            return SubsetTeam(self, start(random_access or not in_order, threads, tolerant, chosen))

        return start_team
