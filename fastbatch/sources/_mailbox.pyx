# cython: language_level=3
"""The workers' side of `PythonSource`: how a worker, a process or a Python thread, waits and answers.

_channels.pyx is the side that asks.
"""

import os
import pickle
import traceback

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from fastbatch._contract cimport FB_MAX_FIELDS
from fastbatch.sources._mailbox cimport (
    FB_FIELD_ALIGNMENT, FB_MAILBOX_ROOM, FB_MAX_CAUSE, FB_MAX_QUESTIONS, fb_end_with, fb_mailbox, fb_mailbox_failed,
    fb_mailbox_listen, fb_mailbox_made, fb_question
)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *text, size_t size, const char *format, ...) noexcept

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static void keep_freed_memory(void) {
        mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that glibc accepts */
        mallopt(M_TRIM_THRESHOLD, 128 << 20);
    }
    #else
    static void keep_freed_memory(void) {}
    #endif
    """
    void keep_freed_memory() noexcept nogil


ROOM: int = FB_MAILBOX_ROOM
ALIGNMENT: int = FB_FIELD_ALIGNMENT


@cython.final
cdef class Memory:
    """A file that is mapped, as a buffer of bytes. The file itself is closed.

    Parameters
    ----------
    file : int
        A descriptor.
    """

    cdef void *address
    cdef readonly Py_ssize_t size
    """Bytes."""

    def __init__(self, int file):
        cdef void *address = MAP_FAILED
        try:
            self.size = os.fstat(file).st_size
            address = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        finally:
            os.close(file)
        if address == MAP_FAILED:
            raise MemoryError("no memory to share with the loader")
        self.address = address

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 0, flags)

    def __dealloc__(self):
        if self.address != NULL:
            munmap(self.address, self.size)


@cython.final
cdef class Mailbox:
    """A worker's end of its channel.

    Parameters
    ----------
    memory : Memory
        The channel's file.
    """

    cdef Memory memory
    cdef fb_mailbox *mailbox

    def __init__(self, Memory memory not None):
        self.memory = memory
        self.mailbox = <fb_mailbox *>memory.address

    def serve(self, load, arrays_of, expect=None):
        """Answers until it is told to leave.

        load(index, epoch, seed, arrays) loads a sample into the arrays that arrays_of(file, offsets, dtypes) gives. An
        exception that it raises is the answer. If arrays_of raises, the worker cannot go on. expect(seeds) hears which
        seeds come next.
        """
        cdef fb_mailbox *mailbox = self.mailbox
        cdef fb_question *question
        cdef dict known = {}
        cdef bint more
        cdef int heard
        cdef Py_ssize_t i
        while True:
            with nogil:
                heard = fb_mailbox_listen(mailbox, 100)
            if heard < 0:
                return
            PyErr_CheckSignals()
            if heard == 0:
                continue
            if expect is not None:
                expect([mailbox.questions[i].seed for i in range(min(mailbox.asked, <uint32_t>FB_MAX_QUESTIONS))])
            more = True
            while more:
                question = &mailbox.questions[mailbox.made]
                key = (question.file, question.row)
                arrays = known.get(key)
                if arrays is None:
                    if len(known) >= 65536:
                        known.clear()
                    arrays = known[key] = arrays_of(question.file, [question.offsets[i] for i in range(FB_MAX_FIELDS)],
                                                    [question.dtypes[i] for i in range(FB_MAX_FIELDS)])
                try:
                    load(question.index, question.epoch, question.seed, arrays)
                except BaseException as error:  # sys.exit() too: somebody waits for an answer
                    self.fail(error)
                    more = False
                else:
                    more = fb_mailbox_made(mailbox)

    def say_shape(self, int number, tuple shape):
        """Says the shape of a field of the next sample, which lies behind the mailbox."""
        cdef int64_t[8] shapes
        cdef Py_ssize_t axis
        for axis in range(len(shape)):
            shapes[axis] = shape[axis]
        memcpy(self.mailbox.shapes[number], shapes, sizeof(shapes))

    cdef int fail(self, error) except -1:
        cdef fb_mailbox *mailbox = self.mailbox
        cdef bytes text, cause
        text, cause = described(error)
        mailbox.cause_size = <uint32_t>min(<size_t>len(cause), sizeof(mailbox.cause))
        memcpy(mailbox.cause, <const char *>cause, mailbox.cause_size)
        snprintf(mailbox.text, sizeof(mailbox.text), "%s", <const char *>text)
        fb_mailbox_failed(mailbox)
        return 0


def described(error, what="loading it raised"):
    """An exception as two byte strings: a sentence, and the exception with its traceback, pickled.

    If it cannot be pickled and be an exception again, or is too large, a RuntimeError with its traceback stands for it.
    """
    name = type(error).__name__
    try:
        words = str(error).strip()
    except Exception:
        words = ""
    text = f"{what} {name}" + (f": {words}" if words else "")
    try:
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        lines = "".join(traceback.format_tb(error.__traceback__))
    try:
        cause = pickle.dumps((error, lines))
        if not isinstance(pickle.loads(cause)[0], BaseException):
            cause = b""
    except Exception:
        cause = b""
    if not cause or len(cause) > FB_MAX_CAUSE:
        cause = pickle.dumps((RuntimeError(f"{name}: {words}"[:1000]), lines[-30000:]))
    return text.replace("\0", "").encode("utf-8", "replace")[:500], cause


def end_with(int process, int socket):
    """Has this process end as soon as that one has ended or closed the socket's other end, even if it is busy."""
    cdef int problem = fb_end_with(process, socket)
    if problem:
        raise OSError(problem, os.strerror(problem))


def keep_memory():
    """Has this process keep memory that it frees, up to 128 MiB, for its next samples.

    By default, glibc returns a decoded photograph's memory to the kernel and gets it again, page fault by page fault,
    for the next one: a third of a worker's time. Settings in the environment take precedence (mallopt(3)).
    """
    if not any(name.startswith("MALLOC_") for name in os.environ) and "GLIBC_TUNABLES" not in os.environ:
        keep_freed_memory()
