# cython: language_level=3
"""What is called after each garbage collection, without losing an exception that a signal handler raises."""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef extern from *:
    int Py_AddPendingCall(int (*function)(void *argument) except -1, void *argument) noexcept

cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    /* Asked of the system: Python's own answer is Python code. */
    static int is_main_thread(void) { return syscall(SYS_gettid) == getpid(); }
    """
    bint is_main_thread() noexcept

from fastbatch._core cimport process_number

cdef set _soon = set()  # functions for the main thread to call


cdef int call_now(void *argument) except -1:
    function = <object>argument
    Py_DECREF(function)
    _soon.discard(function)
    function()
    return 0


def after_collection(function, phase, info):
    """Calls `function()` after each garbage collection.

    Belongs in `gc.callbacks`, as `functools.partial(after_collection, function)`. The callback itself does not make the
    call: signal handlers run in any Python code of the main thread, and an exception that they raise in a callback
    (Ctrl-C, `sys.exit()`) is lost. The main thread makes the call between two steps of its own code instead, where
    exceptions propagate. Other threads run no handlers, so they make the call at once.
    """
    if phase != "stop" or function in _soon:
        return
    if not is_main_thread():
        function()
        return
    _soon.add(function)
    Py_INCREF(function)
    # Too many calls are pending; the next collection tries again.
    if Py_AddPendingCall(call_now, <void *>function) != 0:
        Py_DECREF(function)
        _soon.discard(function)


@cython.final
cdef class Alone:
    """`Alone()(function)` calls `function()`, unless an earlier call is still running.

    Unlike a lock, it is always released, however `function()` ends and wherever a signal handler raises.
    """

    cdef bint busy

    def __call__(self, function):
        if self.busy:
            return
        self.busy = True
        try:
            function()
        finally:
            self.busy = False


def current_process():
    """A number that tells this process from the ones it was forked from."""
    return process_number()
