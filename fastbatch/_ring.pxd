"""The ring of batches, for the consumer's side: slots circulate, `free` to be filled and `full` to be read."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from fastbatch._pixels cimport fb_arena, fb_arithmetic, fb_geometry, fb_role, fb_transform
from fastbatch._core cimport Queue
from fastbatch._failures cimport Failure, Failures
from fastbatch._trace cimport FB_STAGES, fb_note, fb_times, fb_trace
from fastbatch._threads cimport pthread_cond_t, pthread_mutex_t, pthread_t
from fastbatch._contract cimport (
    FB_MAX_DIMS, FB_MAX_FIELDS, FB_WAYS, fb_codec, fb_decoder, fb_dtype, fb_error, fb_place, fb_progress,
    fb_record, fb_scratch, fb_source, fb_view, fb_worker
)
from fastbatch.orders._order cimport fb_order, fb_pick

cdef extern from "memory.h" nogil:
    ctypedef struct fb_memory:
        bint shared
        bint stays_mapped
        char *data
        int file

    int fb_memory_reserve(fb_memory *memory, size_t size) noexcept
    void fb_memory_populate(fb_memory *memory, const int32_t *stop) noexcept
    void fb_memory_empty(fb_memory *memory) noexcept
    void fb_memory_free(fb_memory *memory) noexcept

cdef extern from "keys.h" nogil:
    ctypedef struct fb_sample_key:
        uint64_t index

    ctypedef struct fb_keys:
        pass

    int fb_keys_store(fb_keys *keys, uint32_t samples, const fb_record *record, fb_sample_key *sample) noexcept
    const char *fb_keys_get(const fb_sample_key *sample, size_t *size) noexcept
    void fb_keys_reset(fb_keys *keys) noexcept
    void fb_keys_free(fb_keys *keys) noexcept


cdef extern from "cache.h" nogil:
    ctypedef struct fb_cache:
        pass

    ctypedef struct fb_cached:
        int64_t channels
        int64_t height
        int64_t width
        int64_t image_height
        int64_t image_width
        bint planar

    fb_cache *fb_cache_new(size_t size, uint64_t images, const char *folder) noexcept
    size_t fb_cache_table(uint64_t images) noexcept
    void fb_cache_empty(fb_cache *cache) noexcept
    void fb_cache_free(fb_cache *cache) noexcept
    size_t fb_cache_used(const fb_cache *cache) noexcept
    const fb_cached *fb_cache_get(const fb_cache *cache, uint64_t number) noexcept
    bint fb_cache_wants(const fb_cache *cache, uint64_t number, int64_t channels, int64_t height,
                        int64_t width) noexcept
    fb_cached *fb_cache_claim(fb_cache *cache, uint64_t number, int64_t channels, int64_t height, int64_t width,
                              bint planar) noexcept
    void fb_cache_publish(fb_cache *cache, uint64_t number, const fb_cached *image) noexcept
    unsigned char *fb_cached_pixels(const fb_cached *image) noexcept
    void fb_cached_show(const fb_cached *image, fb_view *view) noexcept


cdef enum:
    MAX_CHUNK = 32
    MAX_REPLACEMENTS = 10  # of one sample; then its error is raised

cdef struct Ring

cdef enum RowState:
    GOOD, BAD, AGAIN  # AGAIN: to be filled with another sample

cdef struct Shape:  # of one sample's values in a batch
    int ndim
    int64_t sizes[FB_MAX_DIMS]

cdef struct Output:  # what becomes of one field: its values in the batch
    fb_dtype dtype
    fb_role role
    int count  # of boxes or points: the field that holds their number, or -1
    Shape shape  # if it is known before a sample is read

cdef enum Layout:  # of a slot
    PENDING, LAID_OUT, IMPOSSIBLE

# Threads that write different values of one cache line wait for each other. Values are therefore grouped by who writes
# them and how often, with a cache line between the groups.
cdef enum:
    CACHE_LINE = 64

cdef struct Slot:  # the memory of one batch, and what its next holder needs to know
    # Read for each sample; written for each batch.
    fb_memory memory
    size_t offsets[FB_MAX_FIELDS]
    size_t strides[FB_MAX_FIELDS]  # bytes from one sample to the next
    Shape shapes[FB_MAX_FIELDS]
    bint streaming  # written past the caches
    # PENDING until the worker of the leading row has laid it out or failed; atomic, set under `lock`.
    int32_t layout
    # The row whose sample decides the shapes: the first one that did not fail. Atomic, set under `lock`.
    int32_t leader
    char *states  # the RowState of each row
    fb_sample_key *sample_keys
    fb_keys keys  # what the sample keys point into
    uint32_t size
    uint32_t real  # the first ones, which repeat no other sample of the epoch
    const fb_order *order
    uint64_t seed
    char[CACHE_LINE] padding
    # Written for each sample: by the sequencer.
    uint32_t issued  # samples assigned to workers
    uint32_t cursor  # the first row that may still be assigned AGAIN
    uint64_t position  # of its first sample, in the order
    uint64_t epoch
    char[CACHE_LINE] padding2
    # Written for each chunk.
    int32_t unfinished  # samples not written yet, whether or not assigned; atomic
    char[CACHE_LINE] padding3
    uint64_t sequence  # the sequence number: its position in the order of delivery
    int32_t generation  # batches of a discarded generation are not delivered
    uint64_t batch
    bint last  # of its epoch
    uint64_t next_epoch  # the epoch in which the next batch begins
    bint leased
    bint doomed  # will not be leased again; its memory is to be freed
    uint32_t attempt  # 0: its samples are those that the order picks; n: failed ones are replaced for the n-th time
    bint again  # comes to the sequencer with rows to be filled AGAIN
    bint counted  # in the ring's batches; not again if samples are replaced afterwards
    pthread_mutex_t lock  # guards the latch and what follows
    pthread_cond_t laid_out
    Failures failures
    bint unrecorded  # there was no memory to say why a sample failed

cdef struct Worker:  # a thread
    Ring *ring
    pthread_t thread
    int chunk  # samples that it takes at a time
    int64_t busy  # nanoseconds spent on them, without waiting
    int64_t sample_time  # nanoseconds per sample, by the latest samples
    fb_worker lent  # lent to the source; its record_buffer is the current sample's
    fb_progress progress  # of the source; atomic
    fb_scratch record_buffers[MAX_CHUNK]
    fb_scratch scratch
    int since_shrink  # samples since the last check whether these are too large
    fb_decoder *decoders[FB_MAX_FIELDS]  # NULL before the first encoded image
    fb_arena prepared  # what views of the sample at hand point to, unless a decoder or the source has it
    uint32_t times_version  # of stage, since, spent and the totals of `times`: see native/trace.h
    int32_t stage  # atomic, as are the next three
    int64_t index
    int64_t since
    int64_t samples  # written by it
    int64_t cache_hits  # images that the cache had; atomic, as the next one
    int64_t cache_misses
    int64_t[FB_WAYS] images  # that its decoders decoded, by fb_way; atomic
    int64_t cpu  # nanoseconds of processor time; atomic, and a little behind
    int64_t cpu_read  # when
    int64_t[FB_STAGES] spent  # nanoseconds on the sample at hand, without the stage at hand; atomic
    bint sample_done  # `spent` is complete with the stage at hand
    fb_note note  # the key of the sample at hand
    fb_times[FB_STAGES] times
    fb_trace trace
    char[CACHE_LINE] padding  # the next worker begins here

cdef struct Ring:
    fb_source source  # a copy, as far as it goes
    fb_codec codec  # the source's; all NULL if it has none
    fb_transform transform
    bint pure  # the order has pure_at()
    uint32_t batch_size
    bint tolerant  # a batch may be delivered although samples failed
    bint replaces  # workers replace samples that failed, without asking the consumer
    uint64_t epoch_samples  # samples in an epoch, as far as anybody knows; those of this rank, without repetitions
    Output outputs[FB_MAX_FIELDS]
    int outputs_count
    fb_cache *cache  # of decoded images; NULL: none
    int cache_fields  # how many of the fields may have images there
    int cache_number[FB_MAX_FIELDS]  # of each field, its number among these, or -1
    bint writes  # the source writes into the batch itself
    bint expects  # the source is told ahead which samples it is to read
    bint announces  # and wants to know beforehand what it is going to write
    bint watches  # for images that the transform leaves as they are, which shows only with the samples
    bint shapes_vary  # some shapes are unknown until a batch's first sample is read
    Slot *slots
    int slots_count
    Queue *free
    Queue *full
    Worker *workers
    int workers_count
    int32_t stop  # atomic: workers leave at their next sample
    char[CACHE_LINE] padding

    pthread_mutex_t sequencer  # guards these
    const fb_order *order  # which samples, with which draws; its pure_at() and draw() are for all workers
    uint64_t seed  # of the choice of replacements
    Slot *open  # the slot whose samples are being assigned
    Slot *next  # the slot that opens next
    uint64_t epoch
    uint64_t batch
    uint64_t position  # in the epoch; over all epochs if the order's epochs have no ends
    uint64_t sequence
    int32_t generation
    char[CACHE_LINE] padding2

    pthread_mutex_t control  # guards these
    bint closing  # no more slots are handed out
    bint dismantled  # returned slots have no owner left
    int32_t wanted_generation  # also read without the lock
    const fb_order *wanted_order
    uint64_t wanted_seed
    uint64_t wanted_epoch
    uint64_t wanted_batch
    Failure *last_failure  # NULL: none so far

    pthread_mutex_t leaving
    pthread_cond_t left
    int alive
    bint left_behind  # dismantled while a worker was still at work; the last worker frees the memory
    bint joined  # or being joined
    bint freed  # the workers' memory, and that of slots nobody holds

    int32_t consuming  # atomic: one consumer at a time
    int32_t leased  # atomic, like everything that follows
    int64_t failures
    int64_t batches  # handed over
    int64_t bytes  # of these
    int64_t data_wait  # nanoseconds
    int64_t data_wait_since  # of the wait at hand; 0: none
    int64_t space_wait
    int64_t space_wait_since

    Slot **reorder  # the reorder buffer, the consumer's: full slots that wait for earlier sequence numbers
    int reorder_count
    uint64_t expected_sequence
    int32_t expected_generation
    int64_t started
    int64_t stopped  # 0: not yet; atomic
    fb_trace trace  # of what the consumer does

cdef struct Ticket:  # one sample's work
    Slot *slot
    uint32_t row  # index in the batch
    uint64_t position  # in the order
    uint32_t attempt  # 0: the sample there; n: its n-th replacement
    fb_record record
    fb_scratch *record_buffer
    bint found  # find_sample() was called for it
    bint located  # so the source hears of its end
    fb_view views[FB_MAX_FIELDS]
    const fb_cached *cached[FB_MAX_FIELDS]  # images that need not be decoded, where `worker.lent.cached` says so
    size_t encoded_sizes[FB_MAX_FIELDS]  # bytes of those that do
    bint fetched[FB_MAX_FIELDS]  # whose place in the batch the decoder has fetched into the caches
    fb_place places[FB_MAX_FIELDS]  # where its fields belong, for a source that writes them
    fb_pick pick  # the order's

cdef Ring *ring_new(int slots_count, int workers_count, uint32_t batch_size) noexcept nogil
cdef void ring_delete(Ring *ring) noexcept nogil
cdef int ring_start(Ring *ring, int count) noexcept nogil
cdef void ring_stop(Ring *ring) noexcept nogil
cdef bint ring_wait(Ring *ring, double seconds) noexcept nogil
cdef bint ring_dismantle(Ring *ring) noexcept nogil


cdef inline uint64_t slot_number(const Ring *ring, const Slot *slot) noexcept nogil:
    """What traces call a batch: its number in the epoch, and above it the slot."""
    return <uint64_t>(slot - ring.slots) << 32 | <uint32_t>slot.batch
