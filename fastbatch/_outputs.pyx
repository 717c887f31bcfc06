# cython: language_level=3
"""What becomes of a source's fields in the batches: their dtypes and shapes, and whether the transform fits them."""

import numpy

from fastbatch._contract import DTYPES
from fastbatch.errors import SampleError

from libc.string cimport memset

from fastbatch._contract cimport (
    FB_FLOAT32, FB_FLOAT64, FB_INT64, FB_UINT64, FB_UINT8, fb_decoding, fb_dtype, fb_error, fb_field, fb_source, fb_view
)
from fastbatch._pixels cimport (
    FB_BOXES, FB_CUT, FB_KEPT, FB_NORMALIZED, FB_POINTS, fb_are_rows, fb_can_convert, fb_form_dtype, fb_transform
)
from fastbatch._ring cimport Output, Ring
from fastbatch._workers cimport check_dtype, shape_of

cdef dict ROWS = {FB_BOXES: "boxes", FB_POINTS: "points"}
CHANNELS_LAST = "; the array looks like n x height x width x channels: use images.transpose(0, 3, 1, 2)"
SAMPLE_CHANNELS_LAST = ("; a sample looks like height x width x channels: have the data set return "
                        "numpy.asarray(image).transpose(2, 0, 1), or tensor.permute(2, 0, 1), which copies nothing. A "
                        "folder of image files is read faster by fastbatch.ImageFolderSource(folder)")


cdef int choose_outputs(Ring *ring, source, tuple names, str source_name, transform, label_dtype,
                        bint float32) except -1:
    """Decides what becomes of every field in the batches, or rejects a transform that does not fit them."""
    cdef fb_field sample
    cdef int i
    if ring.source.decoding != NULL and transform is not None:
        check_resize(ring, names, source_name, transform)
    if moves_pixels(ring):
        check_others(ring, names, source, transform)
    for i in range(ring.outputs_count):
        choose_output(ring, names, i, transform, label_dtype)
        if float32:
            make_float32(ring, names, source_name, i)
        if fb_are_rows(ring.outputs[i].role):
            check_rows(ring, names, i)
        if ring.source.fields[i].ndim < 0:
            check_type(ring, names, i)
            ring.shapes_vary = True
            check_varying(ring, names, i, transform)
            sample = sample_of(ring, names, i, source)
            check_channels(ring, i, &sample, source)
        else:
            fit(ring, names, i, source)
    return 0


cdef int choose_output(Ring *ring, tuple names, int i, transform, label_dtype) except -1:
    cdef const fb_field *field = &ring.source.fields[i]
    cdef Output *output = &ring.outputs[i]
    cdef bint fits_int64 = DTYPES[field.dtype].kind in "iu" and field.dtype != FB_UINT64
    output.dtype = field.dtype
    output.count = -1
    cut = () if transform is None else transform.fields[1:]
    if transform is not None and names[i] == transform.fields[0]:
        output.role = FB_NORMALIZED
        output.dtype = fb_form_dtype(&ring.transform.form)
    elif names[i] in cut:
        output.role = FB_CUT
        if (ring.transform.pad_rows or ring.transform.pad_columns) and not can_hold(
                DTYPES[field.dtype], transform.mask_fill):
            raise ValueError(f"{names[i]} is {DTYPES[field.dtype]}, which has no {transform.mask_fill:g}, the "
                             "transform's mask_fill")
    elif transform is not None and names[i] in transform.boxes:
        output.role = FB_BOXES
    elif transform is not None and names[i] in transform.points:
        output.role = FB_POINTS
    elif names[i] == "label" and (fits_int64 or label_dtype == "float32"):
        output.dtype = FB_FLOAT32 if label_dtype == "float32" else FB_INT64
    return 0


cdef int make_float32(Ring *ring, tuple names, str source_name, int i) except -1:
    cdef fb_dtype given = ring.source.fields[i].dtype
    cdef bint integer_label = names[i] == "label" and DTYPES[given].kind in "iu"
    if ring.writes and not ring.source.converts and given != FB_FLOAT32 and not integer_label:
        raise TypeError(f"{source_name} itself writes {names[i]} as {DTYPES[given]}, and it is needed as "
                        "float32: let write() look at the dtype of its place, and say so with `converts`")
    if ring.outputs[i].role == FB_NORMALIZED and ring.outputs[i].dtype != FB_FLOAT32:
        raise TypeError(f"{names[i]} is needed as float32: leave dtype out of the transform")
    if not fb_can_convert(given, FB_FLOAT32):
        raise TypeError(f"{names[i]} is {DTYPES[given]}, and is needed as float32: convert it with "
                        "astype(numpy.float32)")
    ring.outputs[i].dtype = FB_FLOAT32
    return 0


cdef int check_rows(Ring *ring, tuple names, int i) except -1:
    """Rejects boxes or points of integers, and finds the field that counts them."""
    cdef Output *output = &ring.outputs[i]
    cdef const fb_field *count
    cdef int axis
    if output.dtype != FB_FLOAT32 and output.dtype != FB_FLOAT64:
        needed = "are not integers" if DTYPES[output.dtype].kind != "f" else "need more digits than it has"
        raise TypeError(f"{names[i]} is {DTYPES[output.dtype]}, and a transform moves {ROWS[output.role]} to "
                        f"coordinates that {needed}: convert it with astype(numpy.float32)")
    if f"{names[i]}_count" not in names:
        return 0
    output.count = names.index(f"{names[i]}_count")
    count = &ring.source.fields[output.count]
    shape = tuple([count.shape[axis] for axis in range(count.ndim)])
    if DTYPES[count.dtype].kind not in "iu" or any([size != 1 for size in shape]):
        raise ValueError(f"{names[output.count]} has dtype {DTYPES[count.dtype]}, and its samples have shape {shape}: "
                         f"by its name, it is the number of {ROWS[output.role]} in {names[i]}, one integer")
    return 0


cdef int fit(Ring *ring, tuple names, int i, source) except -1:
    """Records the shape of an array of the batches, if all samples have the same shape.

    Otherwise each batch has its own. Rejects a transform that fits no sample.
    """
    cdef const fb_field *field = &ring.source.fields[i]
    cdef Output *output = &ring.outputs[i]
    cdef fb_view sample
    cdef fb_error error
    cdef int axis
    if output.role == FB_NORMALIZED and field.dtype != FB_UINT8 and field.dtype != FB_FLOAT32:
        raise TypeError(f"{names[i]} is {DTYPES[field.dtype]}, and a transform takes uint8 or float32: "
                        "convert it with astype(numpy.float32)")
    memset(&sample, 0, sizeof(fb_view))
    sample.dtype = field.dtype
    sample.ndim = field.ndim
    for axis in range(field.ndim):
        sample.shape[axis] = field.shape[axis]
    if not shape_of(ring, i, &sample, &output.shape, &error):
        raise ValueError(f"the transform does not fit {names[i]}: {error.text.decode('utf-8', 'replace')}"
                         + (what_to_transpose(source) if channels_last(field) else ""))
    return check_channels(ring, i, field, source)


cdef int check_channels(Ring *ring, int i, const fb_field *field, source) except -1:
    """Rejects a transform of images whose channels are last."""
    if ring.outputs[i].role != FB_KEPT and moves_pixels(ring) and channels_last(field):
        raise ValueError("a transform crops and mirrors images of channels x height x width"
                         + what_to_transpose(source))
    return 0


cdef str what_to_transpose(source):
    return SAMPLE_CHANNELS_LAST if has_workers(source) else CHANNELS_LAST


cdef bint has_workers(source) except -1:
    """Whether it is a PythonSource, a subset of one, or one that is joined with others."""
    return hasattr(source, "__fastbatch_team__")


cdef fb_field sample_of(Ring *ring, tuple names, int i, source) except *:
    """A field with the shape of one sample, as far as that is known."""
    cdef fb_field field = ring.source.fields[i]
    cdef int axis
    if field.ndim >= 0 or not has_workers(source):
        return field
    fields = getattr(getattr(source, "source", source), "fields", None)
    if fields is None:  # of joined sources
        return field
    _, shape = fields[names[i]]  # it has loaded that sample already
    field.ndim = len(shape)
    for axis in range(field.ndim):
        field.shape[axis] = shape[axis]
    return field


cdef int check_type(Ring *ring, tuple names, int i) except -1:
    """Rejects a transform that does not fit this field's type, whatever the shapes of its images are."""
    cdef fb_error error
    if ring.outputs[i].role == FB_NORMALIZED and check_dtype(
            &ring.transform, ring.source.fields[i].dtype, &error) != 0:
        raise ValueError(f"the transform does not fit {names[i]}: {error.text.decode('utf-8', 'replace')}")
    return 0


cdef bint moves_pixels(Ring *ring) noexcept:
    """Whether the transform moves pixels, which must then happen to all images of a sample."""
    cdef const fb_transform *transform = &ring.transform
    return (transform.crop_height or transform.mirror or transform.resize_height or transform.pad_rows
            or transform.pad_columns)


cdef int check_resize(Ring *ring, tuple names, str source_name, transform) except -1:
    """Rejects a transform that resizes what the source has resized already, or what its codec cannot resize.

    And one that moves boxes or points of images that the source has resized already.
    """
    cdef const fb_source *source = &ring.source
    cdef const fb_decoding *decoding
    cdef bint resizes = transform.resize or transform.random_resized_crop
    cdef int i
    if resizes and source.codec != NULL and ring.codec.finish_part == NULL:
        raise ValueError(f"the codec of {source_name} cannot resize, because it has no finish_part(): leave "
                         "resize and random_resized_crop out of the transform")
    for i in range(ring.outputs_count):
        decoding = source.decoding if source.decodings == NULL else &source.decodings[i]
        if names[i] not in transform.fields or source.fields[i].dtype != FB_UINT8 or decoding.new_height == 0:
            continue
        if resizes:
            raise ValueError(f"{source_name} resizes its images (size), and so would the transform: leave one "
                             "of the two out")
        if transform.boxes or transform.points:
            raise ValueError(f"{source_name} resizes its images (size), but not its "
                             f"{', '.join(transform.boxes + transform.points)}: leave size out, and resize in the "
                             "transform, which moves both")
    return 0


cdef int check_others(Ring *ring, tuple names, source, transform) except -1:
    """Rejects image-like fields whose pixels the transform does not move together with those of its image."""
    cdef fb_field field
    cdef fb_field image = sample_of(ring, names, names.index(transform.fields[0]), source)
    cdef fb_field first = image
    cdef int i, axis
    moved = transform.fields + transform.boxes + transform.points
    if image.ndim < 0 and transform.fields[0] == names[0] and any(
            [ring.source.fields[i].ndim == 2 for i in range(ring.outputs_count)]):
        set_first_shape(&first, source)
    for i in range(ring.outputs_count):
        field = sample_of(ring, names, i, source)
        shape = tuple([field.shape[axis] for axis in range(field.ndim)])
        named = ", ".join(transform.fields)
        if names[i] not in moved and looks_like_image(&field, &first):
            raise ValueError(
                f"the transform crops or mirrors {named}, and {named} only: {names[i]}, whose samples have "
                f"shape {shape}, would not fit it any more. Name it too: "
                f"Transform(fields={(*transform.fields, names[i])}, ...)")
        if names[i] not in moved and (ring.source.fields[i].ndim < 0 or (field.ndim == 2 and first.ndim < 0)):
            ring.watches = True
        if names[i] in transform.fields and image.ndim >= 2 and field.ndim >= 2 and (
                image.shape[image.ndim - 2] != field.shape[field.ndim - 2]
                or image.shape[image.ndim - 1] != field.shape[field.ndim - 1]):
            raise ValueError(
                f"the samples of {names[i]} have shape {shape}, with another height or width than those of "
                f"{transform.fields[0]}: what is cropped and mirrored together must be of one size")
    return 0


cdef int check_varying(Ring *ring, tuple names, int i, transform) except -1:
    """Rejects images that a transform leaves as they are while it moves the pixels of others, as `check_others`.

    Their shapes are not known beforehand.
    """
    if (ring.outputs[i].role == FB_KEPT and ring.source.fields[i].dtype == FB_UINT8
            and ring.source.decodings != NULL and moves_pixels(ring)):
        raise ValueError(f"the transform moves the pixels of {', '.join(transform.fields)}, and not those of "
                         f"{names[i]}, which would not fit any more: name all of them in its fields=")
    return 0


cdef bint channels_last(const fb_field *field) noexcept:
    """Whether the last axis of an image looks like its channels."""
    return (field.ndim == 3 and field.shape[2] in (1, 3, 4) and field.shape[0] not in (1, 3, 4)
            and min(field.shape[0], field.shape[1]) > 4)


cdef bint looks_like_image(const fb_field *field, const fb_field *data) noexcept:
    """Whether a field has three dimensions, or the height and width of data."""
    return field.ndim == 3 or (field.ndim == 2 and data.ndim == 3 and field.shape[0] == data.shape[1]
                               and field.shape[1] == data.shape[2])


cdef int set_first_shape(fb_field *image, source) except -1:
    """Gives the source's first field the shape of its first sample, if it can be read."""
    cdef int axis
    try:
        shape = getattr(source, "shape", None)
    except SampleError:
        return 0
    if isinstance(shape, tuple) and len(shape) == 3:
        image.ndim = 3
        for axis in range(3):
            image.shape[axis] = shape[axis]
    return 0


cdef bint can_hold(dtype, value) except -1:
    """Whether a value can be converted to this dtype; exactly, unless it is one of floats."""
    if dtype.kind == "f":
        with numpy.errstate(over="ignore"):
            return numpy.isfinite(numpy.float64(value).astype(dtype))
    if dtype.kind == "b":
        return value == 0 or value == 1
    return value.is_integer() and numpy.iinfo(dtype).min <= int(value) <= numpy.iinfo(dtype).max


cdef list known_shapes(Ring *ring):
    """The arrays' shapes without the first axis, in order; None for one that is known only with its batch."""
    cdef Output *output
    cdef int i, axis
    shapes = []
    for i in range(ring.outputs_count):
        output = &ring.outputs[i]
        known = ring.source.fields[i].ndim >= 0
        shapes.append(tuple([output.shape.sizes[axis] for axis in range(output.shape.ndim)]) if known else None)
    return shapes
