"""The part of LevelDB's C API that reads databases.

LevelDB 1.22, https://github.com/google/leveldb/blob/main/include/leveldb/c.h.
"""

from libc.stdint cimport uint8_t

cdef extern from "<leveldb/c.h>" nogil:
    ctypedef struct leveldb_t:
        pass
    ctypedef struct leveldb_options_t:
        pass
    ctypedef struct leveldb_readoptions_t:
        pass
    ctypedef struct leveldb_iterator_t:
        pass

    int leveldb_major_version() noexcept
    int leveldb_minor_version() noexcept
    void leveldb_free(void *memory) noexcept

    leveldb_options_t *leveldb_options_create() noexcept
    void leveldb_options_destroy(leveldb_options_t *options) noexcept
    void leveldb_options_set_create_if_missing(leveldb_options_t *options, uint8_t value) noexcept
    void leveldb_options_set_paranoid_checks(leveldb_options_t *options, uint8_t value) noexcept
    void leveldb_options_set_write_buffer_size(leveldb_options_t *options, size_t bytes) noexcept
    void leveldb_options_set_max_open_files(leveldb_options_t *options, int count) noexcept
    void leveldb_options_set_block_size(leveldb_options_t *options, size_t bytes) noexcept

    leveldb_t *leveldb_open(const leveldb_options_t *options, const char *path, char **problem) noexcept
    void leveldb_close(leveldb_t *database) noexcept

    leveldb_readoptions_t *leveldb_readoptions_create() noexcept
    void leveldb_readoptions_destroy(leveldb_readoptions_t *options) noexcept
    void leveldb_readoptions_set_verify_checksums(leveldb_readoptions_t *options, uint8_t value) noexcept
    void leveldb_readoptions_set_fill_cache(leveldb_readoptions_t *options, uint8_t value) noexcept

    char *leveldb_get(leveldb_t *database, const leveldb_readoptions_t *options, const char *key, size_t key_size,
                      size_t *size, char **problem) noexcept
    leveldb_iterator_t *leveldb_create_iterator(leveldb_t *database, const leveldb_readoptions_t *options) noexcept
    void leveldb_iter_destroy(leveldb_iterator_t *iterator) noexcept
    uint8_t leveldb_iter_valid(const leveldb_iterator_t *iterator) noexcept
    void leveldb_iter_seek_to_first(leveldb_iterator_t *iterator) noexcept
    void leveldb_iter_next(leveldb_iterator_t *iterator) noexcept
    const char *leveldb_iter_key(const leveldb_iterator_t *iterator, size_t *size) noexcept
    const char *leveldb_iter_value(const leveldb_iterator_t *iterator, size_t *size) noexcept
    void leveldb_iter_get_error(const leveldb_iterator_t *iterator, char **problem) noexcept
