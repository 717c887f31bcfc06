# cython: language_level=3
"""The workers, which fill batches.

Nothing in this file needs the GIL, and nothing in it knows Python.

A worker reads a sample, decodes the part that the batch will show, writes it straight into the batch, and hands over
the slot with its last sample. Where shapes vary, the worker of a batch's first sample lays the slot out once it has
decoded it. The other workers wait for that when they need to write.
"""

from libc cimport errno as c_errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memset, strerror

from fastbatch._contract cimport (
    FB_ENCODED, FB_MAX_FIELDS, FB_WAYS, check_view, fb_decoder, fb_decoding, fb_dtype, fb_error, fb_fail, fb_place,
    fb_view, fb_worker_decoder
)
from fastbatch._core cimport FOREVER, queue_push
from fastbatch._failures cimport Failure, failure_copy, no_error
from fastbatch._pixels cimport (
    FB_CUT, FB_KEPT, FB_NORMALIZED, fb_are_rows, fb_arena_empty, fb_arena_free, fb_arithmetic, fb_can_convert,
    fb_check_dtype, fb_check_means, fb_collate, fb_geometry, fb_geometry_fits, fb_geometry_resizes, fb_kernel_choose,
    fb_kernel_name, fb_pixels_copy, fb_pixels_gather, fb_pixels_normalize, fb_pixels_part, fb_pixels_resize,
    fb_pixels_write, fb_role, fb_rows_check, fb_rows_move, fb_transform, fb_transform_apply, fb_transform_choose,
    fb_transform_shape
)
from fastbatch._ring cimport (
    GOOD, IMPOSSIBLE, LAID_OUT, MAX_CHUNK, Output, PENDING, Ring, Shape, Slot, Ticket, Worker, fb_cache_claim,
    fb_cache_get, fb_cache_publish, fb_cache_wants, fb_cached, fb_cached_pixels, fb_cached_show, fb_keys_store,
    fb_memory_populate, slot_number
)
from fastbatch._scratch cimport RECENT, shrink_scratch
from fastbatch._sequencer cimport choose_chunk, find_sample, next_tickets
from fastbatch._slots cimport replace_failures, slot_fail, slot_lay_out
from fastbatch._stages cimport COLLATE, DECODE, FIRST, FULL, READ, STOPPED, WRITE, enter, read_cpu_time
from fastbatch._threads cimport (
    atomic_add, atomic_add64, atomic_get, atomic_set, atomic_set64, now, pthread_cond_broadcast, pthread_cond_wait,
    pthread_mutex_lock, pthread_mutex_unlock, spin_pause, thread_yields
)
from fastbatch._trace cimport fb_note_set, fb_trace_add
from fastbatch.orders._order cimport fb_order, fb_pick

cdef enum:
    SPINS = 200  # some microseconds
    AHEAD = 32  # samples between the one at hand and the one that the source is told to expect
    MOST_FETCHED = 2 << 20  # bytes of a sample that are fetched into the caches while its image is decoded


# ---- Reading ---------------------------------------------------------------------------------------------------------

cdef bint read_views(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Gets views of the sample's fields from the source, and the shapes of encoded images from the codec.

    False: the slot records the failure.
    """
    cdef fb_error error
    cdef int i
    enter(worker, READ)
    no_error(&error)
    if ring.cache != NULL:
        look_up(ring, worker, ticket)
    if ring.expects and ticket.attempt == 0:
        look_ahead(ring, ticket)
    for i in range(ring.outputs_count):
        ticket.views[i].data = NULL  # for check_view
        ticket.views[i].ndim = -1
        ticket.views[i].scalar = 0  # for an index
    if ring.source.read(ring.source.self, &ticket.record, &worker.lent, ticket.views, &error) != 0:
        slot_fail(ticket.slot, ring, ticket, READ, &error)
        return False
    for i in range(ring.outputs_count):
        if is_cached(worker, i):
            show_cached(ticket, i)
            continue
        if not check_view(&ring.source.fields[i], &ticket.views[i], &error):
            slot_fail(ticket.slot, ring, ticket, READ, &error)
            return False
        if ticket.views[i].dtype == FB_ENCODED:
            enter(worker, DECODE)
            ticket.encoded_sizes[i] = <size_t>ticket.views[i].shape[0]
            if ring.cache != NULL:
                atomic_set64(&worker.cache_misses, worker.cache_misses + 1)
            if not begin_decoding(ring, worker, i, &ticket.views[i], &error):
                slot_fail(ticket.slot, ring, ticket, DECODE, &error)
                return False
    return True


cdef bint begin_decoding(Ring *ring, Worker *worker, int field, fb_view *view, fb_error *error) noexcept nogil:
    """Reads the image's header and gives the view the shape of the decoded image."""
    cdef fb_decoder *decoder
    if ring.codec.begin == NULL:
        fb_fail(error, "it holds an encoded image (JPEG or PNG), which this fastbatch cannot decode: python -m "
                       "fastbatch info says what "
                "to install")
        return False
    decoder = fb_worker_decoder(&worker.lent, field, &ring.codec)
    if decoder == NULL:
        fb_fail(error, "no memory for a decoder")
        return False
    if not begin_image(ring, decoder, field, view, <size_t>view.shape[0], view.shape, error):
        return False
    view.ndim = 3
    return True


cdef bint begin_image(Ring *ring, fb_decoder *decoder, int field, const fb_view *view, size_t size, int64_t *shape,
                      fb_error *error) noexcept nogil:
    """Has the codec read the header of the image in the view's bytes, with the image's index if there is one."""
    if ring.codec.begin(decoder, view.data, size, decoding_of(ring, field), shape, error) != 0:
        return False
    if ring.source.indexes != NULL and ring.source.indexes[field] != NULL:
        ring.codec.use_index(decoder, ring.source.indexes[field], <uint64_t>view.scalar)
    return True


cdef const fb_decoding *decoding_of(const Ring *ring, int field) noexcept nogil:
    """How images of the field are decoded."""
    return ring.source.decoding if ring.source.decodings == NULL else &ring.source.decodings[field]


cdef void look_ahead(Ring *ring, const Ticket *ticket) noexcept nogil:
    """Tells the source which sample will be read before long, so that reading and decoding overlap."""
    cdef const fb_order *order = ticket.slot.order
    cdef fb_pick pick
    order.pure_at(order.self, ticket.position + AHEAD, &pick)
    if ring.cache == NULL or fb_cache_get(ring.cache, pick.index * <uint64_t>ring.cache_fields) == NULL:
        ring.source.expect(ring.source.self, pick.index)


# ---- The cache of decoded images -------------------------------------------------------------------------------------

cdef uint64_t cache_number(const Ring *ring, const Ticket *ticket, int field) noexcept nogil:
    return ticket.pick.index * <uint64_t>ring.cache_fields + <uint64_t>ring.cache_number[field]


cdef void look_up(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Finds out which images of the sample need not be decoded."""
    cdef int i
    worker.lent.cached = 0
    for i in range(ring.outputs_count):
        if ring.cache_number[i] < 0:
            continue
        ticket.cached[i] = fb_cache_get(ring.cache, cache_number(ring, ticket, i))
        if ticket.cached[i] != NULL:
            worker.lent.cached |= <uint32_t>1 << i


cdef bint is_cached(const Worker *worker, int field) noexcept nogil:
    """Whether the cache has the field's image. Without a cache, it never has."""
    return worker.lent.cached >> field & 1


cdef void show_cached(Ticket *ticket, int field) noexcept nogil:
    """Points the field's view at the image. It gets the shape that the codec would give it, before any resize."""
    fb_cached_show(ticket.cached[field], &ticket.views[field])
    ticket.views[field].shape[1] = ticket.cached[field].image_height
    ticket.views[field].shape[2] = ticket.cached[field].image_width


cdef bint decode_whole(Ring *ring, Worker *worker, Ticket *ticket, int field, const fb_geometry *geometry,
                       fb_view *pixels) noexcept nogil:
    """Decodes the whole image, for the batch and for the cache. If it is to be resized to a fixed size, it is.

    False: it is not for the cache, because it does not fit, or is damaged. The damage may not concern the part that the
    batch shows, so the image is then decoded as without a cache.
    """
    cdef fb_error error
    cdef fb_geometry whole
    cdef fb_cached *kept
    cdef int64_t[3] shape
    cdef fb_view *view = &ticket.views[field]
    cdef uint64_t number = cache_number(ring, ticket, field)
    if ring.cache_number[field] < 0:
        return False
    memset(&whole, 0, sizeof(whole))
    whole.region.height = whole.height = view.shape[1]
    whole.region.width = whole.width = view.shape[2]
    if not is_resized_by_region(ring, field) and resizes(ring, field, geometry):
        whole.height, whole.width = geometry.height, geometry.width
    whole.part.height, whole.part.width = whole.height, whole.width
    if not fb_cache_wants(ring.cache, number, view.shape[0], whole.height, whole.width):
        return False
    if not decode(ring, worker, field, &whole, pixels, &error):
        begin_image(ring, worker.decoders[field], field, view, ticket.encoded_sizes[field], shape, &error)
        return False
    # Interleaved channels, which are resized again and again, are not taken apart first. All others become planes.
    kept = fb_cache_claim(ring.cache, number, view.shape[0], whole.height, whole.width,
                          pixels.strides[2] == 1 or not is_resized_by_region(ring, field))
    if kept != NULL:
        kept.image_height, kept.image_width = view.shape[1], view.shape[2]
        if fb_pixels_gather(pixels, kept.planar, fb_cached_pixels(kept), &ring.stop):
            fb_cache_publish(ring.cache, number, kept)
    return True


cdef bint resizes(const Ring *ring, int field, const fb_geometry *geometry) noexcept nogil:
    """Whether images of the field are resized by interpolation, and not just cut."""
    return ring.outputs[field].role == FB_NORMALIZED and fb_geometry_resizes(geometry)


cdef bint is_resized_by_region(const Ring *ring, int field) noexcept nogil:
    """Whether that happens to another region each time."""
    return ring.outputs[field].role == FB_NORMALIZED and ring.transform.random_resized


cdef bint take_part(Ring *ring, Worker *worker, int field, const fb_geometry *geometry, fb_view *view,
                    fb_error *error) noexcept nogil:
    """Replaces a view of an image that decode_whole() has decoded by what the geometry needs of it."""
    cdef fb_geometry own
    cdef fb_view part
    cdef bint resized = resizes(ring, field, geometry)
    if ring.outputs[field].role == FB_KEPT:
        return True
    own = geometry[0]
    if resized and not is_resized_by_region(ring, field):  # when it was decoded
        own.region = geometry.part
        resized = False
    fb_pixels_part(&own, view, &part)
    view[0] = part
    return not resized or fb_pixels_resize(geometry, view, &worker.prepared, error) == 0


# ---- The shapes of the batch ----------------------------------------------------------------------------------------

cdef bint shape_of(Ring *ring, int output, const fb_view *view, Shape *shape, fb_error *error) noexcept nogil:
    """The shape that this view will have in the batch."""
    cdef fb_role role = ring.outputs[output].role
    cdef int axis
    if fb_are_rows(role):
        if fb_rows_check(role, view, error) != 0:
            return False
    elif role != FB_KEPT:
        return fb_transform_shape(&ring.transform, role, view, shape.sizes, &shape.ndim, error) == 0
    shape.ndim = view.ndim
    for axis in range(view.ndim):
        shape.sizes[axis] = view.shape[axis]
    return True


cdef bint lay_out(Ring *ring, Worker *worker, Ticket *ticket, const Shape *shapes) noexcept nogil:
    """Gives the slot its shapes, and memory for them. False: the slot records the failure.

    Shapes that are not known beforehand are those of the batch's first sample, as in Caffe. This ticket is that sample.
    It has these shapes, and was decoded: a damaged one must not decide about the others.
    """
    cdef Slot *slot = ticket.slot
    cdef fb_error error
    cdef int i
    enter(worker, COLLATE)
    no_error(&error)
    for i in range(ring.outputs_count):
        slot.shapes[i] = shapes[i] if ring.shapes_vary else ring.outputs[i].shape
    if not slot_lay_out(slot, ring):
        fb_fail(&error, "no memory for a batch of %u such samples (%s)", ring.batch_size, strerror(c_errno.errno))
        slot_fail(slot, ring, ticket, COLLATE, &error, True)
        return False
    # Wakes the workers that wait.
    pthread_mutex_lock(&slot.lock)
    atomic_set(&slot.layout, LAID_OUT)
    pthread_mutex_unlock(&slot.lock)
    pthread_cond_broadcast(&slot.laid_out)
    return True


cdef bint leads(const Ticket *ticket) noexcept nogil:
    """Whether the slot is to be laid out, and this ticket's sample decides how."""
    return (atomic_get(&ticket.slot.layout) == PENDING
            and atomic_get(&ticket.slot.leader) == <int32_t>ticket.row)


cdef bint must_wait(const Ticket *ticket) noexcept nogil:
    return atomic_get(&ticket.slot.layout) == PENDING and not leads(ticket)


cdef bint wait_for_layout(Ring *ring, Worker *worker, Ticket *ticket, const Shape *shapes) noexcept nogil:
    """Waits until the samples before this one were loaded, and lays the slot out if none of them could be.

    Returns whether the slot is laid out. Also False if the ring is stopped in the meantime.
    """
    cdef Slot *slot = ticket.slot
    cdef int64_t begin
    cdef int spins = 0
    if must_wait(ticket):
        enter(worker, FIRST)
        begin = now()
        # Reading a small sample takes less time than falling asleep.
        while must_wait(ticket) and spins < SPINS:
            spin_pause()
            spins += 1
        pthread_mutex_lock(&slot.lock)
        while must_wait(ticket) and not atomic_get(&ring.stop):
            pthread_cond_wait(&slot.laid_out, &slot.lock)
        pthread_mutex_unlock(&slot.lock)
        worker.busy -= now() - begin
    if leads(ticket):
        return lay_out(ring, worker, ticket, shapes)
    return atomic_get(&slot.layout) == LAID_OUT


cdef bint lay_out_first(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Lays out the slot if this sample leads, before it is read, so that nobody has to wait for that.

    False: that failed, for the reason that the slot records.
    """
    return not leads(ticket) or lay_out(ring, worker, ticket, NULL)


# ---- Writing into the batch ------------------------------------------------------------------------------------------

cdef bint same_shape(const Shape *a, const Shape *b) noexcept nogil:
    cdef int axis
    if a.ndim != b.ndim:
        return False
    for axis in range(a.ndim):
        if a.sizes[axis] != b.sizes[axis]:
            return False
    return True


cdef void describe_shape(const Shape *shape, char *text, size_t room) noexcept nogil:
    cdef size_t used = 1
    cdef int axis
    text[0] = b"("
    text[1] = 0
    for axis in range(shape.ndim):
        if used < room:
            used += snprintf(text + used, room - used, b"%s%lld", b"" if axis == 0 else b", ",
                             <long long>shape.sizes[axis])
    if used < room:
        snprintf(text + used, room - used, ")")


cdef bint decode(Ring *ring, Worker *worker, int field, const fb_geometry *geometry, fb_view *pixels,
                 fb_error *error) noexcept nogil:
    """Decodes what the geometry needs of the field's image, whose header was the last one read, and resizes it.

    A field that is only cut is not resized.
    """
    enter(worker, DECODE)
    if ring.outputs[field].role == FB_CUT or not fb_geometry_resizes(geometry):
        if ring.codec.finish(worker.decoders[field], &geometry.region, pixels, error) != 0:
            return False
    elif ring.codec.finish_part(worker.decoders[field], &geometry.region, <int>geometry.height, <int>geometry.width,
                                &geometry.part, pixels, error) != 0:
        return False
    enter(worker, COLLATE)
    return True


cdef void expect_output(const Ring *ring, const Worker *worker, Ticket *ticket, int output) noexcept nogil:
    """Has the decoder fetch the sample's place in the batch into the caches, instead of writing past them later."""
    cdef const Slot *slot = ticket.slot
    if (ring.codec.expect_output != NULL and atomic_get(&slot.layout) == LAID_OUT and slot.streaming
            and slot.strides[output] <= MOST_FETCHED):
        ticket.fetched[output] = ring.codec.expect_output(worker.decoders[output], place_of(ticket, output),
                                                          slot.strides[output])


cdef char *place_of(const Ticket *ticket, int output) noexcept nogil:
    """Where the sample's values belong in the batch."""
    cdef const Slot *slot = ticket.slot
    return slot.memory.data + slot.offsets[output] + ticket.row * slot.strides[output]


cdef bint prepare(Ring *ring, Worker *worker, Ticket *ticket, int output, Shape *shape, fb_geometry *geometry,
                  fb_error *error) noexcept nogil:
    """Decodes one field of the sample and replaces its view by what is to be written, of this shape in the batch.

    `geometry` is the sample's, all zero before its first image.
    """
    cdef fb_view *view = &ticket.views[output]
    cdef fb_view part
    cdef fb_geometry whole
    cdef Output *target = &ring.outputs[output]
    ticket.fetched[output] = False
    if not shape_of(ring, output, view, shape, error):
        return False
    if target.role != FB_KEPT:
        if geometry.out_height == 0:  # decided by the sample's first image
            if ticket.slot.order.draw != NULL and (
                    ring.transform.mirror or ring.transform.random_crop or ring.transform.jitters):
                ticket.slot.order.draw(ticket.slot.order.self, &ticket.pick)
            if fb_transform_choose(&ring.transform, view, ticket.pick.draws, geometry, error) != 0:
                return False
        elif fb_geometry_fits(geometry, view, error) != 0:
            return False
    if is_cached(worker, output):
        atomic_set64(&worker.cache_hits, worker.cache_hits + 1)
        fb_cached_show(ticket.cached[output], view)
        if not take_part(ring, worker, output, geometry, view, error):
            return False
    elif (view.dtype == FB_ENCODED and ring.cache != NULL
            and decode_whole(ring, worker, ticket, output, geometry, &part)):
        view[0] = part
        if not take_part(ring, worker, output, geometry, view, error):
            return False
    elif view.dtype == FB_ENCODED:
        whole.region.top = whole.region.left = 0
        whole.region.height = whole.height = view.shape[1]
        whole.region.width = whole.width = view.shape[2]
        expect_output(ring, worker, ticket, output)
        if not decode(ring, worker, output, &whole if target.role == FB_KEPT else geometry, &part, error):
            return False
        view[0] = part
    elif target.role != FB_KEPT:
        fb_pixels_part(geometry, view, &part)
        view[0] = part
        if target.role == FB_NORMALIZED and fb_geometry_resizes(geometry):
            if fb_pixels_resize(geometry, view, &worker.prepared, error) != 0:
                return False
    if target.role != FB_NORMALIZED and not fb_can_convert(view.dtype, target.dtype):
        fb_fail(error, "its %s is of another type than the first sample's, from which the batch has its type; a "
                       "transform makes float32 of both", ring.source.fields[output].name)
        return False
    return True


cdef bint move(Ring *ring, Worker *worker, Ticket *ticket, int output, Shape *shape, const fb_geometry *geometry,
               fb_error *error) noexcept nogil:
    """Replaces the view of boxes or points, and that of their count, by what is to be written."""
    cdef Output *target = &ring.outputs[output]
    cdef fb_view *count = NULL
    if not shape_of(ring, output, &ticket.views[output], shape, error):
        return False
    if target.count >= 0:
        count = &ticket.views[target.count]
    return fb_rows_move(&ring.transform, target.role, geometry, ring.source.fields[output].name,
                        &ticket.views[output], target.dtype, count, &worker.prepared, error) == 0


cdef bint all_moved(const Ring *ring, const Ticket *ticket, const fb_geometry *geometry,
                    fb_error *error) noexcept nogil:
    """Whether no field looks like an image that the transform leaves as it is, by the rules of _outputs.pyx."""
    cdef const fb_view *view
    cdef int i
    for i in range(ring.outputs_count):
        view = &ticket.views[i]
        if ring.outputs[i].role == FB_KEPT and (view.ndim == 3 or (
                view.ndim == 2 and view.shape[0] == geometry.image_height
                and view.shape[1] == geometry.image_width)):
            fb_fail(error, "the transform moves the pixels of its image, and not those of its %s, which would not fit "
                           "any more: name both in the transform's fields=", ring.source.fields[i].name)
            return False
    return True


cdef bint prepare_all(Ring *ring, Worker *worker, Ticket *ticket, Shape *shapes, fb_geometry *geometry,
                      fb_error *error) noexcept nogil:
    cdef int i
    memset(geometry, 0, sizeof(fb_geometry))
    fb_arena_empty(&worker.prepared)
    for i in range(ring.outputs_count):
        if not fb_are_rows(ring.outputs[i].role) and not prepare(ring, worker, ticket, i, &shapes[i], geometry, error):
            return False
    for i in range(ring.outputs_count):  # after the image, which decides the geometry
        if fb_are_rows(ring.outputs[i].role) and not move(ring, worker, ticket, i, &shapes[i], geometry, error):
            return False
    return not ring.watches or all_moved(ring, ticket, geometry, error)


cdef bint fits(Ring *ring, Slot *slot, const Shape *shapes, fb_error *error) noexcept nogil:
    """Whether the batch was laid out for samples of these shapes."""
    cdef Shape *expected
    cdef const Shape *found
    cdef char[128] expected_text
    cdef char[128] found_text
    cdef int i
    for i in range(ring.outputs_count):
        expected = &slot.shapes[i]
        found = &shapes[i]
        if same_shape(found, expected):
            continue
        describe_shape(expected, expected_text, sizeof(expected_text))
        describe_shape(found, found_text, sizeof(found_text))
        if found.ndim != 3:
            fb_fail(error, "its %s has shape %s, but the batch has %s, the shape of its first sample; use a batch size "
                           "of 1, a Transform that crops, or samples of one shape (of rows: padded= of a PythonSource)",
                    ring.source.fields[i].name, found_text, expected_text)
            return False
        fb_fail(error, "its %s has shape %s, but the batch has %s, the shape of its first sample (in Caffe's words: "
                       "Check failed: %s); use crop_size, a batch size of 1, or samples of one shape (images of a "
                       "list: size=, or new_height and new_width)", ring.source.fields[i].name, found_text,
                expected_text,
                b"channels == datum_channels" if found.sizes[0] != expected.sizes[0]
                else b"datum_width == width" if found.sizes[1] == expected.sizes[1]
                else b"datum_height == height")
        return False
    return True


cdef bint store(Ring *ring, const Ticket *ticket, int output, const fb_geometry *geometry) noexcept nogil:
    """Writes one field of the sample into the batch. Its values are written only this once.

    False: the ring is stopped. Nobody waits for the batch then, so no reason is needed.
    """
    cdef Slot *slot = ticket.slot
    cdef const fb_view *view = &ticket.views[output]
    cdef Output *target = &ring.outputs[output]
    cdef char *destination = place_of(ticket, output)
    if target.role == FB_NORMALIZED:
        return fb_pixels_write(&ring.transform, geometry, view, destination,
                               slot.streaming and not ticket.fetched[output], &ring.stop)
    if target.role == FB_CUT:
        return fb_pixels_copy(geometry, view, destination, target.dtype, ring.transform.cut_fill, &ring.stop)
    return fb_collate(view, destination, target.dtype, &ring.stop)


cdef bint fill_row(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Loads the ticket's sample and writes it into the batch.

    False: the slot records the reason.
    """
    cdef Slot *slot = ticket.slot
    cdef fb_geometry geometry
    cdef Shape[FB_MAX_FIELDS] shapes
    cdef fb_error error
    cdef int i
    if not ticket.found:
        find_sample(ring, worker, ticket)
    atomic_set64(&worker.index, <int64_t>ticket.record.index)
    worker.lent.record_buffer = ticket.record_buffer
    if atomic_get(&slot.layout) == IMPOSSIBLE:
        return False
    if not ticket.located:
        return False
    fb_note_set(&worker.note, ticket.record.key, ticket.record.key_size)
    if not ring.shapes_vary and not lay_out_first(ring, worker, ticket):
        return False
    no_error(&error)
    if not ring.writes:
        if not read_views(ring, worker, ticket):
            return False
        enter(worker, COLLATE)
        if not prepare_all(ring, worker, ticket, shapes, &geometry, &error):
            slot_fail(slot, ring, ticket, atomic_get(&worker.stage), &error)
            return False
    if not wait_for_layout(ring, worker, ticket, shapes):
        return False
    if atomic_get(&worker.stage) != COLLATE:
        enter(worker, COLLATE)
    fb_memory_populate(&slot.memory, &ring.stop)
    if fb_keys_store(&slot.keys, slot.size, &ticket.record, &slot.sample_keys[ticket.row]) != 0:
        fb_fail(&error, "no memory for its key")
        slot_fail(slot, ring, ticket, COLLATE, &error)
        return False
    if ring.writes:
        if not write_sample(ring, worker, ticket):
            return False
    else:
        if not fits(ring, slot, shapes, &error):
            slot_fail(slot, ring, ticket, COLLATE, &error)
            return False
        for i in range(ring.outputs_count):
            if not store(ring, ticket, i, &geometry):
                return False
    if ticket.attempt:
        slot.states[ticket.row] = GOOD
    return True


# ---- Sources that write into the batch themselves --------------------------------------------------------------------

cdef void announce(Ring *ring, Worker *worker, Ticket *tickets, int taken) noexcept nogil:
    """Tells the source which samples it is to write next, and where."""
    cdef uint32_t number = 0
    cdef int i
    for i in range(taken):
        if not tickets[i].found:
            find_sample(ring, worker, &tickets[i])
        if not tickets[i].located:
            continue
        if not wait_for_layout(ring, worker, &tickets[i], NULL):
            return
        find_places(ring, &tickets[i])
        worker.lent.record_buffer = tickets[i].record_buffer
        ring.source.announce(ring.source.self, number, &tickets[i].record, &worker.lent, tickets[i].places)
        number += 1


cdef void find_places(const Ring *ring, Ticket *ticket) noexcept nogil:
    """Where the sample's fields belong in the batch."""
    cdef Slot *slot = ticket.slot
    cdef fb_place *places = ticket.places
    cdef int i, axis
    for i in range(ring.outputs_count):
        places[i].data = place_of(ticket, i)
        places[i].file = slot.memory.file if slot.memory.shared else -1
        places[i].offset = <char *>places[i].data - slot.memory.data if slot.memory.shared else 0
        places[i].dtype = ring.outputs[i].dtype
        places[i].ndim = slot.shapes[i].ndim
        for axis in range(slot.shapes[i].ndim):
            places[i].shape[axis] = slot.shapes[i].sizes[axis]


cdef bint write_sample(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Lets the source write the sample into the batch itself. False: the slot records the failure."""
    cdef fb_error error
    enter(worker, WRITE)
    no_error(&error)
    if not ring.announces:  # otherwise announce() needed them
        find_places(ring, ticket)
    if ring.source.write(ring.source.self, &ticket.record, &worker.lent, ticket.places, &error) != 0:
        slot_fail(ticket.slot, ring, ticket, WRITE, &error)
        return False
    return True


# ---- From chunk to chunk ---------------------------------------------------------------------------------------------

cdef void shrink(Worker *worker, int taken) noexcept nogil:
    """Frees the worker's memory where it is far larger than what the latest samples took."""
    cdef int i
    worker.since_shrink += taken
    if worker.since_shrink < RECENT:
        return
    worker.since_shrink = 0
    shrink_scratch(&worker.scratch)
    for i in range(MAX_CHUNK):
        shrink_scratch(&worker.record_buffers[i])


cdef void count_images(Ring *ring, Worker *worker) noexcept nogil:
    """Takes over what the worker's decoders have counted, for statistics."""
    cdef uint64_t count
    cdef int way, i
    cdef bint decodes = False
    for i in range(ring.outputs_count):
        decodes |= worker.decoders[i] != NULL
    if not decodes or ring.codec.count == NULL:
        return
    for way in range(<int>FB_WAYS):
        count = 0
        for i in range(ring.outputs_count):
            if worker.decoders[i] != NULL:
                count += ring.codec.count(worker.decoders[i], way)
        atomic_set64(&worker.images[way], <int64_t>count)


cdef void hand_over(Ring *ring, Worker *worker, Slot *slot) noexcept nogil:
    """Hands a batch to the consumer after its last sample was written."""
    cdef Failure *copy
    cdef int64_t bytes = 0
    cdef int i
    if slot.generation != atomic_get(&ring.wanted_generation):
        # A discarded batch. The consumer would free it too, but perhaps much later.
        queue_push(ring.free, slot, FOREVER)
        return
    if slot.failures.first != NULL and slot.attempt == 0:
        copy = failure_copy(slot.failures.first)
        pthread_mutex_lock(&ring.control)
        if copy != NULL:
            copy, ring.last_failure = ring.last_failure, copy
        pthread_mutex_unlock(&ring.control)
        free(copy)
        atomic_add64(&ring.failures, 1)
    if slot.failures.first != NULL and ring.replaces and replace_failures(ring, slot):
        queue_push(ring.free, slot, FOREVER)
        return
    if not slot.counted:
        slot.counted = True
        for i in range(ring.outputs_count):
            bytes += slot.strides[i] * slot.size
        atomic_add64(&ring.batches, 1)
        atomic_add64(&ring.bytes, bytes)
    fb_trace_add(&worker.trace, now(), FULL, slot_number(ring, slot))
    queue_push(ring.full, slot, FOREVER)


cdef void work(Ring *ring, Worker *worker) noexcept nogil:
    """What a worker thread does, until the ring is stopped."""
    cdef Ticket[MAX_CHUNK] tickets
    cdef int taken, written, i
    cdef int64_t begin
    thread_yields()
    while True:
        taken = next_tickets(ring, worker, tickets)
        if taken == 0:
            break
        written = 0
        begin = now()
        if ring.announces:
            announce(ring, worker, tickets, taken)
        for i in range(taken):
            if i == 0 or not atomic_get(&ring.stop):
                written += fill_row(ring, worker, &tickets[i])
                worker.sample_done = True
            if tickets[i].located and ring.source.done != NULL:
                worker.lent.record_buffer = tickets[i].record_buffer
                ring.source.done(ring.source.self, &tickets[i].record, &worker.lent)
        atomic_add64(&worker.samples, written)
        count_images(ring, worker)
        if atomic_get(&ring.stop):
            break  # nobody waits for the batch, which may be incomplete
        worker.busy += now() - begin - worker.lent.latency
        worker.lent.latency = 0
        choose_chunk(ring, worker, taken)
        shrink(worker, taken)
        read_cpu_time(worker)
        if atomic_add(&tickets[0].slot.unfinished, -taken) == 0:
            hand_over(ring, worker, tickets[0].slot)
    enter(worker, STOPPED)


cdef void worker_free(Ring *ring, Worker *worker) noexcept nogil:
    """Frees what a worker keeps from sample to sample."""
    cdef int i
    for i in range(MAX_CHUNK):
        free(worker.record_buffers[i].data)
    free(worker.scratch.data)
    fb_arena_free(&worker.prepared)
    for i in range(FB_MAX_FIELDS):
        if worker.decoders[i] != NULL:
            ring.codec.close(worker.decoders[i])


# ---- The pixel pipeline for other extensions, which use the instruction set chosen here ------------------------------

cdef int check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width,
                     fb_error *error) noexcept nogil:
    return fb_check_means(arithmetic, channels, height, width, error)


cdef int check_dtype(const fb_transform *transform, fb_dtype dtype, fb_error *error) noexcept nogil:
    return fb_check_dtype(transform, dtype, error)


cdef int transform_shape(const fb_transform *transform, const fb_view *image, int64_t *shape,
                         fb_error *error) noexcept nogil:
    """The channels, height and width of the transformed image. 0, or -1 with *error."""
    cdef int ndim
    return fb_transform_shape(transform, FB_NORMALIZED, image, shape, &ndim, error)


cdef int transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t *draws, float *out,
                         fb_error *error) noexcept nogil:
    return fb_transform_apply(transform, image, draws, out, False, error)


cdef bint normalize_pixels(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part,
                           float *out, const int32_t *stop) noexcept nogil:
    return fb_pixels_normalize(arithmetic, geometry, part, out, False, stop)


cdef const char *kernel() noexcept nogil:
    """The instruction set that transforms use."""
    return fb_kernel_name()


cdef int choose_kernel(const char *name) noexcept nogil:
    """Uses this instruction set from now on, for tests and benchmarks; -1 if the processor lacks it.

    NULL: the best one.
    """
    return fb_kernel_choose(name)
