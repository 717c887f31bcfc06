"""The part of LMDB's API that reads databases. LMDB 0.9, http://www.lmdb.tech/doc/."""

cdef extern from "<lmdb.h>" nogil:
    ctypedef struct MDB_env:
        pass
    ctypedef struct MDB_txn:
        pass
    ctypedef struct MDB_cursor:
        pass
    ctypedef unsigned int MDB_dbi
    ctypedef struct MDB_val:
        size_t mv_size
        void *mv_data
    ctypedef struct MDB_stat:
        unsigned int ms_psize
        size_t ms_entries
    ctypedef struct MDB_envinfo:
        size_t me_last_pgno
        size_t me_last_txnid
    enum:
        MDB_RDONLY
        MDB_NOTLS
        MDB_NOLOCK
        MDB_INVALID
        MDB_VERSION_MISMATCH
        MDB_READERS_FULL
        MDB_MAP_RESIZED
    ctypedef enum MDB_cursor_op:
        MDB_FIRST
        MDB_NEXT

    char *mdb_version(int *major, int *minor, int *patch) noexcept
    char *mdb_strerror(int code) noexcept
    int mdb_env_create(MDB_env **env) noexcept
    int mdb_env_open(MDB_env *env, const char *path, unsigned int flags, unsigned int mode) noexcept
    void mdb_env_close(MDB_env *env) noexcept
    int mdb_env_get_fd(MDB_env *env, int *descriptor) noexcept
    int mdb_env_info(MDB_env *env, MDB_envinfo *info) noexcept
    int mdb_env_stat(MDB_env *env, MDB_stat *stat) noexcept
    int mdb_env_set_mapsize(MDB_env *env, size_t bytes) noexcept
    int mdb_reader_check(MDB_env *env, int *dead) noexcept
    int mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned int flags, MDB_txn **txn) noexcept
    size_t mdb_txn_id(MDB_txn *txn) noexcept
    void mdb_txn_abort(MDB_txn *txn) noexcept
    int mdb_dbi_open(MDB_txn *txn, const char *name, unsigned int flags, MDB_dbi *dbi) noexcept
    int mdb_stat(MDB_txn *txn, MDB_dbi dbi, MDB_stat *stat) noexcept
    int mdb_cursor_open(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **cursor) noexcept
    void mdb_cursor_close(MDB_cursor *cursor) noexcept
    int mdb_cursor_get(MDB_cursor *cursor, MDB_val *key, MDB_val *data, MDB_cursor_op op) noexcept
