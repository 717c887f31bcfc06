# cython: language_level=3
"""What becomes of samples that could not be loaded, on the consumer's side: `on_error`, `error_budget` and `errors`."""

from fastbatch._text import counted
from fastbatch.errors import SampleError, SourceError, TooManyErrors

cimport cython

from fastbatch._failures cimport OPEN, RAISED, REPLACED, SKIPPED
from fastbatch._ring cimport MAX_REPLACEMENTS
from fastbatch._stages cimport stage_name

cdef enum:
    KNOWN_ERRORS = 1000  # that `Loader.errors` keeps
    SHOWN_ERRORS = 5  # of these, in the message of TooManyErrors
    MOST_TRIES = 3  # to give an error its cause


@cython.final
@cython.auto_pickle(False)
cdef class BadSamples:
    """Decides about the samples of a batch that failed, and keeps what was decided."""

    def __cinit__(self):
        self.known = []
        self.notes = []

    cdef int set_up(self, Ring *ring, str source_name, team, on_error, budget) except -1:
        self.ring = ring
        self.source_name = source_name
        self.team = team
        self.channels = None if team is None else team.channels
        self.on_error = on_error
        self.budget = budget
        return 0

    cdef object settle(self, Slot *slot, consumer):
        """Decides what becomes of the samples that failed.

        Returns the error that takes the place of the batch, or None. An interrupt changes nothing: the next call goes
        on where this one was. deliver(), give_up() or forget() follows, perhaps after more samples of the batch failed.
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
            error = self.ask_about(failure, slot)
            if failure.fatal:
                self.lost = (f"{self.source_name} cannot be read any further: {error.reason} (at sample "
                             f"{error.index})")
                return SourceError(self.lost)
            # Another object: the one that is raised holds the frames that it passes, and their batches.
            note = SampleError(*error.args)
            note.__cause__ = error.__cause__
            try:
                verdict = self.verdict(failure, error)
            except Exception as problem:  # the function's own, in place of ours; not an interrupt
                if problem is not error:
                    return problem
                verdict = RAISED  # by the function itself
            note.outcome = error.outcome = "raised" if verdict == RAISED else (
                "skipped" if verdict == SKIPPED else "replaced")
            consumer.check()  # the function may have closed the loader
            # From here on, no Python code runs.
            failure.verdict = verdict
            failure.told = True
            self.asked = NULL
            self.notes.append(note)
            if verdict == RAISED:
                return error
            self.failed += 1
            failure = failure.next
        return self.check_budget(slot)

    cdef object ask_about(self, Failure *failure, Slot *slot):
        """The error of a sample that nobody has decided about yet. If that is interrupted, the same one the next time.

        A worker's exception can be taken only once. It may itself raise what looks like an interrupt when it is
        unpickled, so after some tries the error does without.
        """
        if failure != self.asked:
            error = self.error_of(failure, slot.epoch, slot.batch)
            # From here on, no Python code runs.
            self.cause = None if self.channels is None else self.channels.cause(error.index, error.epoch or 0)
            self.tries = 0
            self.question = error
            self.asked = failure
        if self.cause is not None:
            cause = self.cause
            self.tries += 1
            if self.tries == MOST_TRIES:
                self.cause = None
            self.team.add_cause(self.question, cause)
            self.cause = None
        return self.question

    # What follows runs no Python code.

    cdef int deliver(self) except -1:
        """The batch is delivered with what was decided."""
        for note in self.notes:
            self.skipped += note.outcome == "skipped"
            self.replaced += note.outcome == "replaced"
        return self.keep_notes()

    cdef int give_up(self) except -1:
        """The batch is not delivered."""
        for note in self.notes:
            note.outcome = "raised"
        return self.keep_notes()

    cdef int keep_notes(self) except -1:
        self.known.extend(self.notes[:KNOWN_ERRORS - len(self.known)])
        self.counted = self.failed
        return self.forget()

    cdef int forget(self) except -1:
        """Nobody will hear of the batch: the consumer has gone elsewhere."""
        self.failed = self.counted
        self.notes = []
        self.asked = NULL
        self.question = self.cause = None
        return 0

    cdef int forget_causes(self) except -1:
        """Nobody will hear of any batch that is prepared ahead."""
        if self.channels is not None:
            self.channels.forget_causes()
        return 0

    cdef Verdict verdict(self, Failure *failure, error) except *:
        """What becomes of a sample: as the workers have decided already, or as `on_error` says."""
        cdef bint replaceable = failure.attempt < MAX_REPLACEMENTS and self.ring.epoch_samples > 1
        if failure.verdict != OPEN:
            return failure.verdict
        if failure.whole:
            return RAISED
        answer = self.on_error
        if callable(answer):
            error.outcome = None  # also if it was asked before, and interrupted
            answer = answer(error)
            if not isinstance(answer, str) or answer not in ("raise", "skip", "replace"):
                error.outcome = "raised"
                raise ValueError('the function given as on_error must return "raise", "skip" or "replace", and for '
                                 f"sample {error.index} of {error.source} it returned {answer!r}") from error
        if answer == "skip":
            return SKIPPED
        if answer == "replace" and replaceable:
            return REPLACED
        return RAISED

    cdef object check_budget(self, Slot *slot):
        """The error that takes the place of the batch if more samples failed than may fail, or None."""
        if self.budget is None or self.failed == 0:
            return None
        seen = self.seen + slot.size
        allowed = self.budget
        if allowed < 1:
            allowed *= max(seen, self.ring.epoch_samples)  # a bad sample among the first few proves nothing
        if self.failed <= allowed:
            return None
        for note in self.notes:
            note.outcome = "raised"
        return self.too_many(f"{self.failed} of {counted(seen, 'sample')} of {self.source_name} could not be loaded, "
                             f"more than error_budget={self.budget} allows")

    cdef object too_many(self, text):
        first = (self.known + self.notes)[:SHOWN_ERRORS]
        return TooManyErrors("\n  ".join([f"{text}. The first errors:", *map(str, first)]), first, self.failed)

    cdef object error_of(self, Failure *failure, epoch=None, batch=None):
        key = failure.key[:failure.key_size] if failure.key_size else failure.index
        reason = failure.text.decode("utf-8", "replace")
        if failure.attempt:
            reason += f" (it was to replace a sample that had failed, as number {failure.attempt} of at most "
            reason += f"{MAX_REPLACEMENTS})"
        return SampleError(self.source_name, key, failure.index, stage_name(failure.stage).decode(), reason, epoch,
                           batch)
