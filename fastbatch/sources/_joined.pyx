# cython: language_level=3
"""`Joined`: the fields of several sources, side by side."""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._contract cimport (
    FB_END, FB_MAX_FIELDS, FB_SOURCE_CAPSULE, FB_UNCOUNTED, fb_codec, fb_decoding, fb_error, fb_fail, fb_field,
    fb_index, fb_place, fb_record, fb_scratch, fb_source, fb_view, fb_worker, take_source
)
from fastbatch._scratch cimport RECENT, shrink_scratch
from fastbatch._threads cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
)
from fastbatch._files import quoted
from fastbatch._text import counted
from fastbatch.errors import SourceError
from fastbatch.sources._arrays import ArraySource
from fastbatch.sources._subset import Subset, count_of


cdef struct Held:  # what the parts have of one sample, from locate() to done()
    Held *next
    int since_shrink
    fb_record records[FB_MAX_FIELDS]
    # Of all parts but the first, which has the worker's own.
    fb_scratch record_buffers[FB_MAX_FIELDS]
    fb_scratch scratches[FB_MAX_FIELDS]

cdef struct Reader:
    fb_source source
    fb_field fields[FB_MAX_FIELDS]
    fb_decoding decodings[FB_MAX_FIELDS]
    fb_index *indexes[FB_MAX_FIELDS]
    fb_source parts[FB_MAX_FIELDS]
    uint32_t first[FB_MAX_FIELDS]  # the number of each part's first field
    int count
    pthread_mutex_t lock  # guards what follows; a leaf
    Held *unused


cdef Held *take_held(Reader *reader) noexcept nogil:
    """Memory for one more sample; NULL if there is none."""
    cdef Held *held
    pthread_mutex_lock(&reader.lock)
    held = reader.unused
    if held != NULL:
        reader.unused = held.next
    pthread_mutex_unlock(&reader.lock)
    return held if held != NULL else <Held *>calloc(1, sizeof(Held))


cdef void give_held(Reader *reader, Held *held) noexcept nogil:
    cdef int i
    held.since_shrink += 1
    if held.since_shrink >= RECENT:
        held.since_shrink = 0
        for i in range(1, reader.count):
            shrink_scratch(&held.record_buffers[i])
            shrink_scratch(&held.scratches[i])
    pthread_mutex_lock(&reader.lock)
    held.next = reader.unused
    reader.unused = held
    pthread_mutex_unlock(&reader.lock)


cdef void lend(const Reader *reader, int part, Held *held, const fb_worker *worker, fb_worker *lent) noexcept nogil:
    """What a worker lends to one part: its own memory, and the decoders of its own fields."""
    lent[0] = worker[0]
    lent.cached = worker.cached >> reader.first[part]
    if worker.decoders != NULL:
        lent.decoders = worker.decoders + reader.first[part]
    if part:
        lent.record_buffer = &held.record_buffers[part]
        lent.scratch = &held.scratches[part]


cdef void take_back(fb_worker *worker, const fb_worker *lent) noexcept nogil:
    """Counts what the part that the worker was lent to has counted."""
    worker.latency = lent.latency
    worker.cpu_elsewhere = lent.cpu_elsewhere


cdef void end(Reader *reader, Held *held, int parts, const fb_worker *worker) noexcept nogil:
    """Ends the sample for the first parts."""
    cdef fb_worker lent
    cdef int i
    for i in range(parts):
        if reader.parts[i].done != NULL:
            lend(reader, i, held, worker, &lent)
            reader.parts[i].done(reader.parts[i].self, &held.records[i], &lent)
    give_held(reader, held)


cdef int explain(const Reader *reader, int part, fb_error *error) noexcept nogil:
    """Says of which source an error is, unless it is the first, which the message names anyway."""
    cdef fb_error own
    if part:
        own = error[0]
        own.text[sizeof(own.text) - 1] = 0
        fb_fail(error, "in %.100s: %.380s", reader.parts[part].name, own.text)
    return -1


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef Held *held = take_held(reader)
    cdef fb_record *own
    cdef fb_worker lent
    cdef int code, i
    if held == NULL:
        return fb_fail(error, "no memory for a sample of several sources")
    for i in range(reader.count):
        own = &held.records[i]
        memset(own, 0, sizeof(fb_record))
        own.index = record.index
        own.epoch = record.epoch
        own.seed = record.seed
        if reader.parts[i].locate == NULL:
            continue
        lend(reader, i, held, worker, &lent)
        code = reader.parts[i].locate(reader.parts[i].self, own, &lent, error)
        if code == FB_END:
            error.fatal = 1
            fb_fail(error, "the source has only %llu sample%s now", <unsigned long long>own.index,
                    b"" if own.index == 1 else b"s")
        if code != 0:
            end(reader, held, i, worker)
            return explain(reader, i, error)
    record.index = held.records[0].index
    record.key = held.records[0].key
    record.key_size = held.records[0].key_size
    record.data = held
    return 0


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef Held *held = <Held *>record.data
    cdef fb_worker lent
    cdef int code, i
    for i in range(reader.count):
        lend(reader, i, held, worker, &lent)
        code = reader.parts[i].read(reader.parts[i].self, &held.records[i], &lent, views + reader.first[i], error)
        take_back(worker, &lent)
        if code != 0:
            return explain(reader, i, error)
    return 0


cdef int write(void *self, const fb_record *record, fb_worker *worker, const fb_place *places,
               fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef Held *held = <Held *>record.data
    cdef fb_worker lent
    cdef int code, i
    for i in range(reader.count):
        lend(reader, i, held, worker, &lent)
        code = reader.parts[i].write(reader.parts[i].self, &held.records[i], &lent, places + reader.first[i], error)
        take_back(worker, &lent)
        if code != 0:
            return explain(reader, i, error)
    return 0


cdef void done(void *self, const fb_record *record, fb_worker *worker) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    end(reader, <Held *>record.data, reader.count, worker)


cdef void expect(void *self, uint64_t index) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef int i
    for i in range(reader.count):
        if reader.parts[i].expect != NULL:
            reader.parts[i].expect(reader.parts[i].self, index)


cdef void delete(object capsule) noexcept:
    cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    cdef Held *held = reader.unused
    cdef Held *next
    cdef int i
    while held != NULL:
        next = held.next
        for i in range(1, reader.count):
            free(held.record_buffers[i].data)
            free(held.scratches[i].data)
        free(held)
        held = next
    pthread_mutex_destroy(&reader.lock)
    take_owner(capsule)
    free(reader)


cdef int add_part(Reader *reader, name, source, capsule, list names) except -1:
    """Adds a source. `name`: that of its data, or None if it keeps its fields' names."""
    cdef fb_source *part = &reader.parts[reader.count]
    cdef fb_codec codec
    cdef uint32_t first = reader.source.field_count
    cdef uint32_t i
    take_source(source, capsule, part, &codec)
    if first + part.field_count > FB_MAX_FIELDS:
        raise ValueError(f"the sources have more than {FB_MAX_FIELDS} fields together, which a batch cannot have")
    if part.codec != NULL and reader.source.codec != NULL and part.codec != reader.source.codec:
        raise TypeError(f"{type(source).__name__} has another codec than the sources before it, and a batch's images "
                        "are decoded by one")
    for i in range(part.field_count):
        own = part.fields[i].name.decode()
        if name is not None:
            own = name if part.field_count == 1 or own == "data" else f"{name}_{own}"
        if own in names:
            raise ValueError(f"two of the sources have a field {own!r}: give one of them by another name, as in "
                             "Joined(images, mask=masks); masks come without labels from a list of paths")
        names.append(own)
        reader.fields[first + i] = part.fields[i]
        if part.decodings != NULL:
            reader.decodings[first + i] = part.decodings[i]
        elif part.decoding != NULL:
            reader.decodings[first + i] = part.decoding[0]
        if part.indexes != NULL:
            reader.indexes[first + i] = part.indexes[i]
    if part.codec != NULL and reader.source.codec == NULL:
        reader.source.codec = part.codec
        reader.source.decoding = part.decoding
    reader.first[reader.count] = first
    reader.source.field_count += part.field_count
    reader.count += 1
    return 0


cdef int choose_verbs(Reader *reader) except -1:
    """Sets the functions that all parts have, and the properties that follow."""
    cdef const fb_source *part
    cdef bint reads = True
    cdef bint writes = True
    cdef bint shared = False
    cdef bint converts = True
    cdef uint32_t at_once = 0xFFFFFFFF
    cdef int i
    reader.source.pure_locate = 1
    for i in range(reader.count):
        part = &reader.parts[i]
        reads = reads and part.read != NULL
        writes = writes and part.write != NULL
        shared = shared or part.shared_batches
        converts = converts and part.converts
        at_once = min(at_once, max(part.at_once, 1))
        reader.source.seeded = reader.source.seeded or part.seeded
        reader.source.pure_locate = reader.source.pure_locate and (part.locate == NULL or part.pure_locate)
    for i in range(<int>reader.source.field_count):
        writes = writes and reader.fields[i].ndim >= 0
    if not reads and not writes:
        raise TypeError("some of the sources write into the batch themselves, and others do not: these cannot be "
                        "joined")
    if reads:
        reader.source.read = read
    if writes:
        reader.source.write = write
        reader.source.shared_batches = shared
        reader.source.converts = converts
    reader.source.locate = locate
    reader.source.done = done
    reader.source.expect = expect
    reader.source.at_once = at_once
    return 0


cdef object source_of(name, given):
    """A source that can be joined: the given one, or one of the given array."""
    if isinstance(getattr(given, "source", given), Joined) and hasattr(given, "__fastbatch_team__"):
        raise TypeError(f"{given!r} has a PythonSource among its sources, and is joined once more: join all of them at "
                        "once")
    if hasattr(given, "__fastbatch_source__"):
        return given
    if hasattr(given, "__array__") or isinstance(given, memoryview):
        return ArraySource(given) if name is None else ArraySource(**{name: given})
    raise TypeError(f"Joined takes sources and arrays, and {'one' if name is None else name} is {quoted(given)}: of a "
                    "list, make an array by numpy.asarray(); a data set can return all fields itself")


@cython.final
cdef class JoinedTeam:
    """The workers of the joined sources that have some, as a loader sees them."""

    cdef list teams  # of the sources that have one, each with the source's number
    cdef list indices  # of each source: those of the samples that it has of another one; None if it is no subset
    cdef object own_capsule

    def __init__(self, sources):
        self.teams = []
        self.indices = [each.indices if isinstance(each, Subset) else None for each in sources]

    cdef object first_error(self, action):
        """Does something with all teams. Returns the first exception."""
        first_error = None
        for _, team in self.teams:
            try:
                action(team)
            except BaseException as error:  # including Ctrl-C
                first_error = first_error or error
        return first_error

    def capsule(self):
        """A PyCapsule of the fb_source of all sources together."""
        return self.own_capsule

    @property
    def channels(self):
        """This object, which has the functions of `Channels` that a loader calls."""
        return self

    @property
    def processes(self):
        """The ids of the worker processes."""
        return [process for _, team in self.teams for process in team.processes]

    def tend(self):
        """Replaces the workers that ended."""
        for _, team in self.teams:
            team.tend()

    def add_cause(self, error, cause):
        """Gives the error of a sample the worker's exception as its cause."""
        for _, team in self.teams:
            if team.add_cause(error, cause):
                return

    def close(self):
        """Ends the workers. May be called twice."""
        first_error = self.first_error(end_team)
        if first_error is not None:
            raise first_error

    # What follows runs no Python code.

    def forget_causes(self):
        """Drops the exceptions that wait."""
        for _, team in self.teams:
            team.channels.forget_causes()

    def cause(self, uint64_t index, uint64_t epoch):
        """The pickled exception that kept a sample from being loaded; None if there is none.

        index: as errors name it, in the first source; or, if that is a subset, in the source behind it.
        """
        for position in positions_of(index, self.indices[0]):
            for number, team in self.teams:
                own = position if self.indices[number] is None else self.indices[number][position]
                cause = team.channels.cause(own, epoch)
                if cause is not None:
                    return cause
        return None


def end_team(team):
    """Ends the workers of a team."""
    team.close()


cdef list positions_of(uint64_t index, indices):
    """Where a sample occurs among the indices of a subset; None: of a whole source."""
    if indices is None:
        return [index]
    if isinstance(indices, range):
        return [indices.index(index)] if index in indices else []
    return (indices == index).nonzero()[0].tolist()


cdef bint iterates(source) except -1:
    """Whether it is a PythonSource of an iterable, or a subset of one."""
    while isinstance(source, Subset):
        source = source.source
    return getattr(source, "_in_order", False)


def joined_of(sources, named):
    """Returns a Joined, for pickle."""
    return Joined(*sources, **named)


@cython.final
cdef class Joined:
    """The fields of several sources side by side: sample i has those of sample i of each source.

    ::

        images, masks = ImageListSource("images.txt"), ImageListSource(mask_paths, color="gray")
        source = Joined(images, mask=masks)                      # data, label and mask
        source = Joined(LMDBSource("train"), weight=weights)     # an array with a row for each sample

    Parameters
    ----------
    *sources
        Sources whose fields keep their names. An array becomes an `ArraySource`.
    **named
        Sources whose field "data", or only field, gets this name. Their other fields get it as a prefix: "mask_label".
        An array becomes a field of this name.

    Raises
    ------
    ValueError
        The sources have different numbers of samples, or fewer than two are given. A loader raises it if two fields
        have the same name, or if there are more than 16.
    TypeError
        Something is given that is neither a source nor an array, or a `Joined` of a `PythonSource`.

    Notes
    -----
    The sources read on their own: each has its own color and size of images. A sample's key is that of the first
    source; errors of the others name theirs.

    A `PythonSource` has its workers here too. They write into shared memory, from where the loader's threads copy the
    values into the batch. If its data set can return all fields itself, that is faster.

    `close()` leaves the sources open. The source is immutable; any number of loaders may read it at once.
    """

    cdef readonly tuple sources
    """All sources, in the order of their fields."""
    cdef tuple names  # of each, or None
    cdef uint64_t count

    def __init__(self, *sources, **named):
        self.names = (*[None] * len(sources), *named)
        self.sources = tuple([source_of(name, each) for name, each in zip(self.names, (*sources, *named.values()))])
        if not 2 <= len(self.sources) <= FB_MAX_FIELDS:
            raise ValueError(f"{len(self.sources)} sources are given; 2 to {FB_MAX_FIELDS} can be joined")
        counts = [count_of(source) for source in self.sources]
        if len(set(counts)) > 1:
            raise ValueError("the sources have different numbers of samples: " + ", ".join(
                f"{name or type(source).__name__} has {count}"
                for name, source, count in zip(self.names, self.sources, counts)))
        self.count = counts[0]

    @property
    def shape(self):
        """The shape of the first source's data."""
        return self.sources[0].shape

    @property
    def workers(self):
        """The workers of a `PythonSource` among the sources, the most if there are several; None if there is none.

        1 if one of them iterates, because one thread asks for its samples.
        """
        if any([iterates(source) for source in self.sources]):
            return 1
        return max([source.workers for source in self.sources if getattr(source, "workers", None)], default=None)

    def __len__(self):
        """Return the number of samples."""
        return self.count

    def __getitem__(self, indices):
        """Return the `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    def __repr__(self):
        return "Joined(" + ", ".join(f"{name}={source!r}" if name else repr(source)
                                     for name, source in zip(self.names, self.sources)) + ")"

    def __reduce__(self):
        plain = [source for name, source in zip(self.names, self.sources) if name is None]
        return joined_of, (plain, {name: source for name, source in zip(self.names, self.sources) if name})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Do nothing: the sources stay open."""

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h)."""
        return self.join([source.__fastbatch_source__(random_access) for source in self.sources])

    @property
    def __fastbatch_team__(self):
        """A function that starts the workers of the PythonSources; there is none if no source is one."""
        if not any([hasattr(source, "__fastbatch_team__") for source in self.sources]):
            raise AttributeError("no source has workers")
        return self.start_team

    def start_team(self, random_access, threads, tolerant, indices=()):
        """Starts the workers, and returns a `JoinedTeam`. indices: samples that the loader will ask for."""
        team = JoinedTeam(self.sources)
        capsules = []
        try:
            for number, source in enumerate(self.sources):
                if hasattr(source, "__fastbatch_team__"):
                    own = source.__fastbatch_team__(random_access, threads, tolerant, indices)
                    team.teams.append((number, own))
                    capsules.append(own.capsule())
                else:
                    capsules.append(source.__fastbatch_source__(random_access))
            team.own_capsule = self.join(capsules)
        except BaseException:
            team.close()
            raise
        return team

    cdef object join(self, list capsules):
        """A PyCapsule of the fb_source of all, of whose capsules it is made."""
        cdef Reader *reader
        cdef int i
        names = []
        kept = []
        reader = <Reader *>calloc(1, sizeof(Reader))
        if reader == NULL:
            raise MemoryError()
        pthread_mutex_init(&reader.lock, NULL)
        capsule = source_capsule(&reader.source, delete, (capsules, kept))  # frees the reader if what follows raises
        for i, (name, source, own) in enumerate(zip(self.names, self.sources, capsules)):
            add_part(reader, name, source, own, names)
            if reader.parts[i].count != FB_UNCOUNTED and reader.parts[i].count != self.count:
                raise SourceError(f"{source!r} has {counted(reader.parts[i].count, 'sample')} now, and not "
                                  f"{self.count} any more")
        kept += [name.encode() for name in names]
        for i in range(<int>reader.source.field_count):
            reader.fields[i].name = <const char *>kept[i]
        begin_source(&reader.source, reader, reader.parts[0].name, self.count, reader.fields, len(names))
        if reader.source.codec != NULL:
            reader.source.decodings = reader.decodings
            reader.source.indexes = reader.indexes
        choose_verbs(reader)
        return capsule
