"""A third party's mistake in a source or a codec is an error with a message; correct ones work."""

import ctypes
import gc
import os

import numpy as np
import pytest

from fastbatch import Joined, Loader, SampleError, SourceError, Subset, Transform
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeRecords
from third_party import (
    BOOL,
    ENCODED,
    FLOAT32,
    UINT8,
    Codec,
    Source,
    ThirdParty,
    decoders_closed_too_late,
    decoders_open,
)

PATIENCE = 20


def load(source, *transform, **options):
    with Loader(source, *transform, timeout=PATIENCE, threads=2, **options) as loader:
        return next(iter(loader))


# ---- when a loader is made


def set_source(**members):
    return lambda native: [setattr(native.source, name, value) for name, value in members.items()]


def set_codec(**members):
    def change(native):
        native.source.codec = native_codec(native)
        for name, value in members.items():
            setattr(native.codec, name, value)

    return change


def native_codec(native):
    return ctypes.addressof(native.codec)


def set_decoding(**members):
    def change(native):
        native.source.codec = native_codec(native)
        for name, value in members.items():
            setattr(native.decoding, name, value)

    return change


def set_field(**members):
    return lambda native: [setattr(native.fields[0], name, value) for name, value in members.items()]


def set_size_of(axis, size):
    def change(native):
        native.fields[0].shape[axis] = size

    return change


REFUSED = {
    "another abi": (
        set_source(abi=1),
        "was compiled for version 1 of fastbatch's source contract, this is version 2: compile it against",
    ),
    "no size": (set_source(size=0), r"the size of its fb_source is 0; it must be sizeof\(fb_source\)"),
    "a size that ends before the functions": (set_source(size=32), "and this one has neither$"),
    "no name": (set_source(name=None), "its fb_source has no name$"),
    "no fields": (set_source(fields=None), "its fb_source has no fields$"),
    "no count and no locate": (
        set_source(locate=None, count=2**64 - 1),
        r"an fb_source without locate\(\) cannot say where it ends, so its count must be known",
    ),
    "neither read nor write": (
        set_source(read=None),
        r"an fb_source has read\(\) or write\(\), and this one has neither",
    ),
    "0 fields": (set_source(field_count=0), "has 0 fields; a batch has 1 to 16"),
    "17 fields": (set_source(field_count=17), "has 17 fields; a batch has 1 to 16"),
    "more samples than there can be": (
        set_source(count=2**62 + 1),
        "has 4611686018427387905 samples .* more than there can be",
    ),
    "a field without a name": (set_field(name=None), "its field 0 has no name"),
    "a field with an empty name": (set_field(name=b""), "field 0 cannot have the name ''"),
    "a field with a name that cannot be printed": (set_field(name=b"a\nb"), r"field 0 cannot have the name 'a\\nb'"),
    "a field with a name that is not UTF-8": (set_field(name=b"\xff"), r"the name of field 0, b'\\xff', is not UTF-8"),
    "two fields of one name": (set_field(name=b"label"), "the fields 0 and 1 have the same name, 'label'"),
    "a dtype that does not exist": (set_field(dtype=77), "data has the dtype 77, which no array has$"),
    "a negative dtype": (set_field(dtype=-1), "data has the dtype -1, which no array has$"),
    "an encoded field": (
        set_field(dtype=ENCODED),
        "data has the dtype 12, .*images that are decoded on the way are uint8",
    ),
    "9 dimensions": (set_field(ndim=9), "data has 9 dimensions; it can have 8, or -1 if every sample may have others"),
    "-3 dimensions": (set_field(ndim=-3), "data has -3 dimensions"),
    "a negative size": (set_size_of(1, -8), "dimension 1 of data is -8; no array has a negative one"),
    "a codec of another abi": (
        set_codec(abi=1),
        "brings a codec of version 1 of fastbatch's codec contract, this is version 2: compile",
    ),
    "a codec without a size": (set_codec(size=0), r"the size of its fb_codec is 0; it must be sizeof\(fb_codec\)"),
    "a codec without open": (set_codec(open=None), "its fb_codec has no open$"),
    "a codec without all but finish_resized": (
        set_codec(open=None, close=None, begin=None, finish=None),
        "its fb_codec has no open, no close, no begin, no finish$",
    ),
    "a codec without decoding": (
        lambda native: [set_codec()(native), set_source(decoding=None)(native)],
        "its fb_source has no decoding",
    ),
    "a color that does not exist": (set_decoding(color=5), "the color of its fb_decoding is 5; it is FB_UNCHANGED, "),
    "a resize to nothing": (set_decoding(new_height=3), "its fb_decoding resizes to 3 x 0; both are at least 1, or 0"),
    "a resize to less": (set_decoding(new_height=-3, new_width=-3), "resizes to -3 x -3"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_is_wrong_with_a_source_is_said_when_a_loader_is_made(what):
    change, sentence = REFUSED[what]
    source = ThirdParty()
    change(source.native)
    with pytest.raises(TypeError, match=f"ThirdParty.*{sentence}"):
        Loader(source)
    assert source.native.deleted == 1


def test_a_source_with_both_verbs_is_read_where_pixels_are_transformed():
    source = ThirdParty(10, writes=True)
    source.native.source.read = ThirdParty().native.source.read
    assert load(source, batch_size=3).data.tolist() == [np.full((3, 4, 5), index).tolist() for index in range(3)]
    assert not load(source, Transform(scale=2), batch_size=3).data.any()  # as read() says


def test_no_samples():
    with pytest.raises(SourceError, match="third party is empty; a loader needs at least one sample"):
        Loader(ThirdParty(0))


UNCOUNTED = 2**64 - 1


def uncounted(end=4, said=4):
    """A source that does not know that it has 4 samples before it has come to the last one."""
    source = ThirdParty(4)
    source.native.source.count, source.native.end, source.native.said = UNCOUNTED, end, said
    return source


def test_a_source_may_not_know_its_count():
    """A loader asks len(); Caffe's order finds out, and goes on in the next epoch."""
    with Loader(uncounted(), batch_size=3, timeout=PATIENCE) as loader:
        assert [batch.sample_keys for batch in loader] == [[0, 1, 2], [3]]
    ring = BatchRing(uncounted(), batch_size=3, slots=3, threads=2, order=CaffeRecords(0, rank=1, ranks=3))
    try:
        batches = [ring.next(PATIENCE) for _ in range(3)]
        assert [batch.sample_keys for batch in batches] == [[1, 0, 3], [2, 1, 0], [3, 2, 1]]
        assert [batch.epoch for batch in batches] == [1, 4, 6]
    finally:
        batches = None
        ring.close()


@pytest.mark.parametrize("said", [0, 6, UNCOUNTED])
def test_a_count_that_cannot_be(said):
    ring = BatchRing(uncounted(5, said), batch_size=2, slots=3, threads=2, order=CaffeRecords(0))
    try:
        with pytest.raises(
            SourceError,
            match=f"third party cannot be read any further: the source says that it has only {said} samples",
        ):
            for _ in range(3):
                ring.next(PATIENCE).release()
    finally:
        ring.close()


def test_an_end_that_nobody_asked_for():
    """Of a source that knew its count, or whose len() is wrong."""
    for source in ThirdParty(9), uncounted():
        source.count, source.native.end, source.native.said = 9, 4, 4
        with (
            Loader(source, timeout=PATIENCE) as loader,
            pytest.raises(SourceError, match="the source says that it has only 4 samples"),
        ):
            for _ in loader:
                pass


def test_nobody_knows_the_count():
    class Uncountable:
        def __fastbatch_source__(self, random_access):
            return party.__fastbatch_source__(random_access)

    party = uncounted()
    with pytest.raises(
        TypeError, match=r"Uncountable does not know how many samples it has \(FB_UNCOUNTED\), .*: give it a __len__"
    ):
        Loader(Uncountable())


class NewerCapsule(ThirdParty):
    """Compiled against a header with 8 more bytes in its structs."""

    def __init__(self, asked=0):
        super().__init__()
        self.native.source.size += 8
        longer = bytes(self.native.source) + asked.to_bytes(8, "little")
        self.address = self.keep(longer)

    def __fastbatch_source__(self, random_access):
        from planned import new_capsule

        return new_capsule(self.address, b"fastbatch.source", None)


def test_a_source_that_knows_more_members_and_does_not_use_them():
    assert load(NewerCapsule(), batch_size=2).data.shape == (2, 3, 4, 5)


def test_a_source_that_uses_members_that_nobody_knows_here():
    with pytest.raises(
        TypeError, match="NewerCapsule: its fb_source uses something that this fastbatch does not know: install"
    ):
        Loader(NewerCapsule(asked=2**40))


def test_a_source_and_a_codec_that_know_fewer_members():
    """What they do not know is not looked at."""
    source = ThirdParty()
    native = source.native
    source.use_codec()
    native.source.size = Source.codec.offset
    native.source.codec = 1
    native.source.decoding = 1
    assert load(source, batch_size=2).data.shape == (2, 3, 4, 5)
    source = ThirdParty()
    source.use_codec()
    source.show_encoded(0, np.arange(20, dtype=np.uint8).reshape(4, 5))
    source.native.fields[0].ndim = -1
    source.native.codec.size = Codec.finish_resized.offset
    source.native.codec.finish_resized = 1
    assert load(source).data.shape == (1, 1, 4, 5)


# ---- when a sample comes


def set_view(number, **members):
    return lambda native: [setattr(native.views[number], name, value) for name, value in members.items()]


def set_shape(number, axis, size):
    def change(native):
        native.views[number].shape[axis] = size

    return change


def encoded(size, ndim=1, number=0):
    def change(native):
        native.views[number].dtype, native.views[number].ndim = ENCODED, ndim
        native.views[number].shape[0] = size

    return change


WRONG_VIEWS = {
    "a dtype that does not exist": (set_view(1, dtype=77), "shows its label with the dtype 77, which does not exist"),
    "a negative dtype": (set_view(0, dtype=-1), "shows its data with the dtype -1, which does not exist"),
    "9 dimensions": (set_view(0, ndim=9), "shows its data with 9 dimensions; 0 to 8 are possible"),
    "very many dimensions": (set_view(1, ndim=2**31 - 1), "shows its label with 2147483647 dimensions"),
    "-3 dimensions": (set_view(0, ndim=-3), "shows its data with -3 dimensions"),
    "a negative size": (set_shape(0, 2, -5), "shows its data with -5 as the size of dimension 2"),
    "the address 0": (set_view(1, data=None), "shows its label at the address 0"),
    "a view that is left alone": (
        lambda native: setattr(native, "left_alone", 2),
        r"shows nothing of its label: read\(\) left the view as it was",
    ),
    "a file of negative size": (encoded(-5), "shows its data with -5 as the size of dimension 0"),
    "a file of two dimensions": (
        encoded(5, ndim=2),
        "shows its data as an encoded image, with 2 dimensions: that has one",
    ),
    "a label that is a file": (
        encoded(5, number=1),
        "shows its label as an encoded image, .* belongs to a field of uint8 or float32",
    ),
    "a failure without a reason": (lambda native: setattr(native, "silent", 1), "the source gives no reason"),
}


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("transform", [None, Transform(crop_size=2)], ids=["as it is", "transformed"])
@pytest.mark.parametrize("what", list(WRONG_VIEWS))
def test_what_is_wrong_with_a_view_is_an_error_of_its_sample(what, transform, varying):
    change, sentence = WRONG_VIEWS[what]
    source = ThirdParty()
    if varying:
        source.native.fields[0].ndim = -1
    change(source.native)
    with pytest.raises(SampleError, match=sentence) as caught:
        load(source, transform, batch_size=2)
    assert caught.value.source == "third party" and caught.value.index == 0


def test_the_label_of_another_type_is_refused_not_left_as_it_was():
    source = ThirdParty()
    source.native.fields[1].dtype = BOOL
    source.native.views[1].dtype = FLOAT32
    with pytest.raises(SampleError, match="its label is of another type"):
        load(source)


def test_no_values_at_the_address_0():
    """An array may be empty."""
    source = ThirdParty()
    source.native.fields[0].shape[1] = 0
    source.native.views[0].shape[1] = 0
    source.native.views[0].data = None
    assert load(source).data.shape == (1, 3, 0, 5)


@pytest.mark.parametrize("order", [None, CaffeRecords(1701)], ids=["found in parallel", "found in order"])
def test_a_source_without_locate(order):
    """It finds its samples by their indices."""
    source = ThirdParty(1000, writes=True)
    source.native.source.locate = None
    ring = BatchRing(source, batch_size=100, slots=3, threads=4, order=order)
    for number in range(20):
        batch = ring.next(PATIENCE)
        assert batch.label.tolist() == list(range(number % 10 * 100, number % 10 * 100 + 100))
        assert batch.epoch == number // 10
    ring.close()


# ---- the third verb


@pytest.mark.parametrize("shared", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("label_dtype, dtype", [("int64", np.int64), ("float32", np.float32)])
def test_a_source_that_writes_itself(label_dtype, dtype, shared):
    source = ThirdParty(10, writes=True)
    source.native.source.shared_batches = shared
    ring = BatchRing(source, batch_size=3, slots=2, threads=2, label_dtype=label_dtype)
    for size in (3, 3, 3, 1):
        batch = ring.next(PATIENCE)
        first = batch.number * 3
        assert batch.label.dtype == dtype and batch.label.tolist() == list(range(first, first + size))
        assert batch.data.dtype == np.uint8 and batch.data.shape == (size, 3, 4, 5)
        assert (batch.data == np.arange(first, first + size).reshape(size, 1, 1, 1)).all()
    ring.close()


def test_a_source_that_cannot_write():
    source = ThirdParty(writes=True)
    source.native.silent = 1
    with pytest.raises(SampleError, match="sample 0: the source gives no reason") as caught:
        load(source)
    assert caught.value.stage == "write"


def test_a_source_that_writes_its_own_types_is_not_asked_for_others():
    source = ThirdParty(writes=True)
    ring = dict(batch_size=1, slots=2, threads=1, float32=True)
    with pytest.raises(TypeError, match="third party itself writes data as uint8, and it is needed as float32"):
        BatchRing(source, **ring)
    source.native.source.converts = 1
    assert BatchRing(source, **ring).next(PATIENCE).data.dtype == np.float32


@pytest.mark.parametrize("order", [None, CaffeRecords(1701)], ids=["found in parallel", "found in order"])
def test_samples_are_announced_before_they_are_written(order):
    source = ThirdParty(1000, writes=True)
    source.native.source.locate = None
    source.native.source.announce = source.native.note
    ring = BatchRing(source, batch_size=100, slots=3, threads=4, order=order)
    for number in range(40):
        first = number % 10 * 100
        assert ring.next(PATIENCE).label.tolist() == list(range(first, first + 100))
    ring.close()
    assert 2 <= source.native.together <= 32


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True}, {"shuffle": True, "rank": 1, "ranks": 3, "even": "pad"}, {"last_batch": "wrap"}]
)
@pytest.mark.parametrize(
    "of",
    [
        lambda source: source,
        lambda source: Subset(source, range(99, 0, -2)),
        lambda source: Joined(source, number=np.arange(100)),
    ],
    ids=["source", "subset", "joined"],
)
def test_a_source_hears_what_it_will_have_to_read(options, of):
    """In any order that does not depend on the samples before: the thirty-second one from now."""
    source = ThirdParty(100)
    source.native.source.expect = source.native.note_expected
    with Loader(of(source), batch_size=10, threads=1, seed=3, timeout=PATIENCE, **options) as loader:
        order = [key for _ in range(3) for batch in loader for key in batch.sample_keys]
    said = source.native.expected[: source.native.expected_count]
    assert len(said) >= len(order) and said[: len(order) - 32] == order[32:]


def test_a_source_hears_nothing_where_the_order_goes_on_from_sample_to_sample():
    source = ThirdParty(100)
    source.native.source.expect = source.native.note_expected
    ring = BatchRing(source, batch_size=10, slots=3, threads=2, order=CaffeRecords(1701))
    ring.next(PATIENCE)
    ring.close()
    assert source.native.expected_count == 0


def test_every_sample_that_is_found_is_ended_once():
    for _ in range(20):
        source = ThirdParty(10**6, writes=True)
        source.native.source.locate = None
        source.native.source.done = source.native.count_done
        ring = BatchRing(source, batch_size=100, slots=3, threads=4)
        ring.next(PATIENCE)
        ring.close()
        assert source.native.ended >= source.native.begun >= 100  # a found sample need not be written any more
        assert source.native.twice == 0


def test_a_source_that_writes_needs_its_shapes():
    source = ThirdParty(writes=True)
    source.native.fields[0].ndim = -1
    with pytest.raises(
        TypeError, match=r"ThirdParty: data has no shape that is known beforehand, which write\(\) needs"
    ):
        Loader(source)


def test_shared_batches_are_for_sources_that_write():
    source = ThirdParty()
    source.native.source.shared_batches = 1
    with pytest.raises(TypeError, match=r"ThirdParty: shared_batches is for write\(\), and this fb_source has read"):
        Loader(source)


def shared_files():
    """The files of shared batches that this process has open."""
    links = [entry.path for entry in os.scandir("/proc/self/fd")]
    return [link for link in links if os.path.islink(link) and "memfd:fastbatch" in os.readlink(link)]


def test_shared_batches_leave_no_file_open():
    gc.collect()  # what other tests left
    source = ThirdParty(10, writes=True)
    source.native.source.shared_batches = 1
    loader = Loader(source, batch_size=3, prefetch=3)
    batch = next(iter(loader))
    assert 1 <= len(shared_files()) <= 4  # three to prefetch, and the one that is held
    loader.close()
    assert batch.label.tolist() == [0, 1, 2]  # as long as it is held
    del batch
    assert shared_files() == []


def test_a_source_that_writes_takes_no_transform():
    with pytest.raises(
        ValueError, match="no transform can be applied to third party, which writes its samples into the batch itself"
    ):
        Loader(ThirdParty(writes=True), Transform(scale=2))


# ---- codecs

IMAGE = np.arange(42, dtype=np.uint8).reshape(6, 7)
MASK = 255 - IMAGE


def encoded_pair(varying):
    """A source with two encoded fields, of which each has a decoder."""
    source = ThirdParty(20)
    native = source.native
    native.fields[1].name, native.fields[1].dtype = b"mask", UINT8
    for field, image in enumerate((IMAGE, MASK)):
        native.fields[field].ndim = -1 if varying else 3
        for axis, size in enumerate((1, *image.shape)):
            native.fields[field].shape[axis] = size
        source.show_encoded(field, image)
    source.use_codec()
    return source


@pytest.mark.parametrize("varying", [False, True])
def test_two_encoded_fields(varying):
    batch = load(encoded_pair(varying), batch_size=4)
    assert (batch.data == IMAGE).all() and (batch.mask == MASK).all() and len(batch) == 4


def test_a_codec_of_others_with_a_transform():
    batch = load(encoded_pair(True), Transform(scale=2))
    assert (batch.data[0, 0] == IMAGE * 2.0).all() and (batch.mask[0, 0] == MASK).all()
    with pytest.raises(SampleError, match="not those of its mask, which would not fit any more: name both in the"):
        load(encoded_pair(True), Transform(crop_size=4))
    source = encoded_pair(True)
    source.show_encoded(1, IMAGE + 1)
    batch = load(source, Transform(crop_size=4, phase="TEST", fields=("data", "mask")))
    assert (batch.data[0, 0] == IMAGE[1:5, 1:5]).all() and (batch.mask[0, 0] == IMAGE[1:5, 1:5] + 1).all()


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("parameters", [{"resize": 4}, {"random_resized_crop": (3, 4)}])
def test_a_codec_that_cannot_resize_is_refused_when_a_loader_is_made(parameters, varying):
    source = encoded_pair(varying)
    with pytest.raises(ValueError, match=r"the codec of third party cannot resize, because it has no finish_part\(\)"):
        Loader(source, Transform(**parameters))


def test_a_codec_is_done_before_its_source_is_gone():
    """The codec may live in what the capsule's destructor frees."""
    before = decoders_open()
    for end in ("closed", "collected", "failed"):
        source = encoded_pair(True)
        if end == "failed":
            source.native.views[1].shape[0] -= 1
        loader = Loader(source, batch_size=2, threads=3, timeout=PATIENCE)
        batches = iter(loader)
        if end == "failed":
            with pytest.raises(SampleError, match="no image of ours: 43 bytes"):
                next(batches)
        else:
            next(batches)
        assert decoders_open() > before
        if end == "closed":
            loader.close()
        del loader, batches
        gc.collect()
        assert source.native.deleted == 1
        assert decoders_open() == before
    assert decoders_closed_too_late() == 0


def test_an_encoded_view_without_a_codec():
    source = ThirdParty()
    source.show_encoded(0, IMAGE)
    with pytest.raises(SampleError, match="it holds an encoded image"):
        load(source)
