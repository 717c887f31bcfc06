"""The file in memory where a worker leaves samples whose shapes vary, as the loader sees it.

The worker, which knows how large a sample is, enlarges the file. Nobody can make it smaller, so what was mapped stays
readable.
"""

from libc.stdint cimport int64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close

from fastbatch._scratch cimport KEPT_BUFFER, RECENT

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int file, int mode, int64_t offset, int64_t size) noexcept
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE

cdef enum:
    LARGEST_PAGE = 65536

cdef struct SampleFile:
    int file  # -1: there is none
    char *data  # NULL: nothing is mapped yet
    size_t size  # of what is mapped
    size_t wanted  # the most that the latest samples took
    int since_trim  # how many these are


cdef inline void sample_file_unmap(SampleFile *sample) noexcept nogil:
    if sample.data != NULL:
        munmap(sample.data, sample.size)
    sample.data = NULL
    sample.size = 0


cdef inline void sample_file_close(SampleFile *sample) noexcept nogil:
    """Closes the file. What was mapped stays."""
    if sample.file >= 0:
        close(sample.file)
    sample.file = -1


cdef inline void sample_file_set(SampleFile *sample, int file) noexcept nogil:
    """Goes on with another file."""
    sample_file_unmap(sample)
    sample.file = file
    sample.wanted = sample.since_trim = 0


cdef inline bint sample_file_has(const SampleFile *sample, size_t size) noexcept nogil:
    """Whether the file has so many bytes."""
    cdef struct_stat status
    return fstat(sample.file, &status) == 0 and <size_t>status.st_size >= size


cdef inline bint sample_file_map(SampleFile *sample, size_t size) noexcept nogil:
    """Maps the file, which has so many bytes, as far as it goes. False: no memory."""
    cdef struct_stat status
    cdef void *memory
    sample.wanted = max(sample.wanted, size)
    if size <= sample.size:
        return True
    if fstat(sample.file, &status) != 0:
        return False
    memory = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, sample.file, 0)
    if memory == MAP_FAILED:
        return False
    sample_file_unmap(sample)
    sample.data = <char *>memory
    sample.size = status.st_size
    return True


cdef inline void sample_file_trim(SampleFile *sample, size_t least) noexcept nogil:
    """Frees memory that is far larger than what the latest samples took. The file keeps its size.

    Called before each sample. least: bytes at the beginning of the file that are no sample's.
    """
    cdef struct_stat status
    cdef int64_t keep = (<int64_t>max(sample.wanted, least) + LARGEST_PAGE - 1) // LARGEST_PAGE * LARGEST_PAGE
    sample.since_trim += 1
    if sample.since_trim < RECENT:
        return
    sample.since_trim = 0
    sample.wanted = 0
    if (fstat(sample.file, &status) == 0 and status.st_blocks * 512 > KEPT_BUFFER
            and status.st_blocks * 512 // 4 > keep):
        fallocate(sample.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, keep, status.st_size - keep)
