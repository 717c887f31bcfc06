"""Releasing and retaking the GIL, in threads that third-party native code may have started."""

cdef extern from *:
    """
    #include <pthread.h>
    #include <unistd.h>

    /* Takes the GIL back. An interpreter that is finalizing gives it to no other thread: until Python 3.13 it ends
     * them on the spot with pthread_exit, which unwinds the frames of their callers. Caffe's frames are C++, and end
     * the process with "FATAL: exception not rethrown". So such a thread waits here until the process is gone, as it
     * does in Python 3.14. */
    #if PY_VERSION_HEX < 0x030E0000
    static void wait_for_the_end(void *unused) {
        (void)unused;
        for (;;) pause();
    }

    static void come_back(PyThreadState *state) {
        pthread_cleanup_push(wait_for_the_end, NULL);
        PyEval_RestoreThread(state);
        pthread_cleanup_pop(0);
    }
    #else
    static void come_back(PyThreadState *state) { PyEval_RestoreThread(state); }
    #endif
    """
    ctypedef struct PyThreadState:
        pass
    PyThreadState *go_away "PyEval_SaveThread"() noexcept  # no Python object may be touched before come_back()
    void come_back(PyThreadState *state) noexcept
