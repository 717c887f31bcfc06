# cython: language_level=3
"""Looks up dynamic symbols of this process by name, and reads from addresses that may be invalid.

All functions are called with the GIL held, or do not need it.
"""

from libc.errno cimport errno
from libc.string cimport strerror
from posix.unistd cimport close, read, write


cdef extern from "dlfcn.h" nogil:
    ctypedef struct Dl_info:
        const char *dli_sname
        void *dli_saddr
        void *dli_fbase
    const int RTLD_LAZY, RTLD_NOLOAD
    void *RTLD_DEFAULT
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    int dladdr(const void *, Dl_info *)


cdef extern from "fcntl.h" nogil:
    const int O_CLOEXEC
    int pipe2(int *, int)


cdef inline void *pycaffes_extension() except? NULL:
    """A handle of the loaded _caffe.so, for symbol(). NULL if it can't be opened again.

    In pycaffe, libcaffe's functions are not globally visible, but a lookup that starts at _caffe.so continues in the
    libraries it depends on. If libcaffe is linked into _caffe.so, the functions may be in _caffe.so itself.
    """
    cdef bytes path
    import caffe._caffe
    path = caffe._caffe.__file__.encode()
    return dlopen(path, RTLD_LAZY | RTLD_NOLOAD)


cdef inline void *symbol(void *library, const char *name) noexcept:
    """The symbol in the library or its dependencies, else in the program (the `caffe` tool). NULL if not found."""
    cdef void *address = NULL
    if library != NULL:
        address = dlsym(library, name)
    if address == NULL:
        address = dlsym(RTLD_DEFAULT, name)
    return address


cdef inline int peek(const void *address, void *into, size_t size) except -1:
    """Copy `size` bytes from an address that may be wrong; 1 if they can't be read.

    The kernel does the reading: a write() from an invalid address is an error, not a crash. Raises OSError if no pipe
    can be created.
    """
    cdef int ends[2]
    cdef int result = 1
    if pipe2(ends, O_CLOEXEC) != 0:
        reason = strerror(errno).decode()
        raise OSError(errno, f"{reason}: a layer needs two file descriptors for a moment while it is set up")
    if write(ends[1], address, size) == <Py_ssize_t> size and read(ends[0], into, size) == <Py_ssize_t> size:
        result = 0
    close(ends[0])
    close(ends[1])
    return result
