# cython: language_level=3
"""What becomes of samples that could not be loaded, on the consumer's side: `on_error`, `error_budget` and `errors`."""

from fastbatch.errors import SampleError, SourceError, TooManyErrors

cimport cython
from libc.stdint cimport uint64_t

from fastbatch._failures cimport OPEN, RAISED, REPLACED, SKIPPED
from fastbatch._ring cimport MAX_REPLACEMENTS
from fastbatch._stages cimport stage_name

cdef enum:
    KNOWN_ERRORS = 1000  # that `Loader.errors` keeps
    SHOWN_ERRORS = 5  # of these, in the message of TooManyErrors


@cython.final
@cython.auto_pickle(False)
cdef class BadSamples:
    """Decides about the samples of a batch that failed, and keeps what was decided."""

    def __cinit__(self):
        self.known = []

    cdef int set_up(self, Ring *ring, str source_name, team, on_error, budget) except -1:
        self.ring = ring
        self.source_name = source_name
        self.team = team
        self.on_error = on_error
        self.budget = budget
        return 0

    cdef object settle(self, Slot *slot, consumer):
        """Decides what becomes of the samples that failed, and says so in `errors`.

        Returns the error that takes the place of the batch, or None. An interrupt changes nothing: the next call goes
        on where this one was.
        """
        cdef Failure *failure = slot.failures.first
        cdef Verdict verdict
        if slot.unrecorded:
            return MemoryError(f"{self.source_name}: no memory to say why a sample failed; batch {slot.batch} of "
                               f"epoch {slot.epoch} is not delivered")
        while failure != NULL:
            if failure.told:
                failure = failure.next
                continue
            error = self.error_of(failure, slot.epoch, slot.batch)
            if failure.fatal:
                self.lost = (f"{self.source_name} cannot be read any further: {error.reason} (at sample "
                             f"{error.index})")
                return SourceError(self.lost)
            if self.team is not None:
                self.team.add_cause(error)
            # Another object: the one that is raised holds the frames that it passes, and their batches.
            note = SampleError(*error.args)
            note.__cause__ = error.__cause__
            try:
                verdict = self.verdict(failure, error)
            except Exception as problem:  # the function's own, in place of ours; not an interrupt
                return problem
            note.outcome = error.outcome = "raised" if verdict == RAISED else (
                "skipped" if verdict == SKIPPED else "replaced")
            consumer.check()  # the function may have closed the loader
            # From here on, no Python code runs.
            failure.verdict = verdict
            failure.told = True
            self.skipped += verdict == SKIPPED
            self.replaced += verdict == REPLACED
            if len(self.known) < KNOWN_ERRORS:
                self.known.append(note)
            if verdict == RAISED:
                return error
            failure = failure.next
        return self.check_budget(slot)

    cdef Verdict verdict(self, Failure *failure, error) except *:
        """What becomes of a sample: as the workers have decided already, or as `on_error` says."""
        cdef bint replaceable = failure.attempt < MAX_REPLACEMENTS and self.ring.epoch_samples > 1
        if failure.verdict != OPEN:
            return failure.verdict
        if failure.whole:
            return RAISED
        answer = self.on_error
        if callable(answer):
            error.outcome = None
            answer = answer(error)
        if answer == "skip":
            return SKIPPED
        if answer == "replace" and replaceable:
            return REPLACED
        if answer not in ("raise", "replace"):
            raise ValueError(f'on_error must return "raise", "skip" or "replace", not {answer!r}')
        return RAISED

    cdef object check_budget(self, Slot *slot):
        """The error that takes the place of the batch if more samples failed than may fail, or None."""
        cdef uint64_t failed = self.skipped + self.replaced
        if self.budget is None or failed == 0:
            return None
        seen = self.seen + slot.size
        allowed = self.budget
        if allowed < 1:
            allowed *= max(seen, self.ring.epoch_samples)  # a bad sample among the first few proves nothing
        if failed <= allowed:
            return None
        return self.too_many(f"{failed} of {seen} samples of {self.source_name} could not be loaded, more than "
                             f"error_budget={self.budget} allows")

    cdef object too_many(self, text):
        first = self.known[:SHOWN_ERRORS]
        return TooManyErrors("\n  ".join([f"{text}. The first errors:", *map(str, first)]), first,
                             self.skipped + self.replaced)

    cdef object error_of(self, Failure *failure, epoch=None, batch=None):
        key = failure.key[:failure.key_size] if failure.key_size else failure.index
        reason = failure.text.decode("utf-8", "replace")
        if failure.attempt:
            reason += f" (it was to replace a sample that had failed, as number {failure.attempt} of at most "
            reason += f"{MAX_REPLACEMENTS})"
        return SampleError(self.source_name, key, failure.index, stage_name(failure.stage).decode(), reason, epoch,
                           batch)
