# cython: language_level=3
"""How we reach what is in this process without headers: functions by name, and memory that may not be where we think.

Everything here is called with the GIL held, or needs nothing of Python.
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
    """_caffe.so, which is loaded, for symbol(). NULL where it can't be opened once more.

    In pycaffe libcaffe's functions are not visible to all, but a search that begins at _caffe.so goes on in the libraries
    that it needs. Where libcaffe is part of _caffe.so, they may be found in itself.
    """
    cdef bytes path
    import caffe._caffe
    path = caffe._caffe.__file__.encode()
    return dlopen(path, RTLD_LAZY | RTLD_NOLOAD)


cdef inline void *symbol(void *library, const char *name) noexcept:
    """What has this name in the library or in what it needs, else in the program: the `caffe` tool. NULL: nothing."""
    cdef void *address = NULL
    if library != NULL:
        address = dlsym(library, name)
    if address == NULL:
        address = dlsym(RTLD_DEFAULT, name)
    return address


cdef inline int peek(const void *address, void *into, size_t size) except -1:
    """Copy `size` bytes from an address that may be wrong; 1 if they can't be read.

    The kernel does the reading: a write() from a wrong address is an error, not a crash. OSError without a pipe for it.
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
