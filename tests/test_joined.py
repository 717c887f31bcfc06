"""Joined: the fields of several sources, side by side."""

import pickle

import numpy as np
import pytest

from contracts import PATIENCE, check_source
from databases import image_leveldb, image_lmdb, images
from fastbatch import (
    ArraySource,
    ImageListSource,
    Joined,
    LevelDBSource,
    LMDBSource,
    Loader,
    SampleError,
    SourceError,
    Transform,
    features,
)
from jpegs import encode_png
from pixel_reference import placed
from reference import draws
from third_party import ThirdParty

COUNT = 7
PICTURES = images(COUNT)
MASKS = images(COUNT, (1, 12, 10), seed=1)
LABELS = np.arange(COUNT) * 10
NAMES = [f"{i}.png" for i in range(COUNT)]


def expected(**fields):
    return {name: list(values) for name, values in fields.items()}


@pytest.fixture
def folder(tmp_path):
    """Images and masks, each in a folder of its own."""
    if features()["png"] is None or features()["jpeg"] is None:
        pytest.skip("built without decoders")
    for what, arrays in ("images", PICTURES), ("masks", MASKS):
        (tmp_path / what).mkdir()
        for name, array in zip(NAMES, arrays):
            pixels = np.ascontiguousarray(array[::-1].transpose(1, 2, 0))
            (tmp_path / what / name).write_bytes(encode_png(pixels, 2 if len(array) == 3 else 0, 8))
    return tmp_path


def images_and_masks(folder, **options):
    return Joined(
        ImageListSource(NAMES, folder / "images", label=LABELS),
        mask=ImageListSource(NAMES, folder / "masks", color="gray", **options),
    )


def test_arrays():
    source = Joined(ArraySource(PICTURES, LABELS), ArraySource(weight=LABELS / 2), box=ArraySource(LABELS))
    check_source(source, expected(data=PICTURES, label=LABELS, weight=LABELS / 2, box=LABELS))
    assert source.shape == (3, 12, 10) and len(source.sources) == 3
    check_source(
        pickle.loads(pickle.dumps(source)), expected(data=PICTURES, label=LABELS, weight=LABELS / 2, box=LABELS)
    )


def test_plain_arrays():
    weights = np.linspace(0, 1, COUNT)
    source = Joined(ArraySource(PICTURES, LABELS), weight=weights, mask=MASKS[:, 0])
    check_source(source, expected(data=PICTURES, label=LABELS, weight=weights, mask=MASKS[:, 0]))
    check_source(Joined(PICTURES, ArraySource(None, LABELS)), expected(data=PICTURES, label=LABELS))


def test_names():
    pair = ArraySource(MASKS, LABELS)
    source = Joined(ArraySource(PICTURES, LABELS), depth=pair)
    check_source(source, expected(data=PICTURES, label=LABELS, depth=MASKS, depth_label=LABELS))
    assert repr(source) == f"Joined({source.sources[0]!r}, depth={pair!r})"


def test_images_and_masks(folder):
    """Each list has its own color, and its files do not overwrite each other in a worker's memory."""
    source = images_and_masks(folder)
    check_source(source, expected(data=PICTURES, label=LABELS, mask=MASKS), [name.encode() for name in NAMES])
    with source as same:
        assert same is source


def test_sizes_of_their_own(folder):
    with Loader(images_and_masks(folder, size=(6, 5)), batch_size=COUNT, threads=3) as loader:
        for batch in loader:
            assert batch.data.shape[1:] == (3, 12, 10) and batch.mask.shape[1:] == (1, 6, 5)
            assert (batch.data == PICTURES).all()


def test_a_transform_of_the_image(folder):
    transform = Transform(scale=0.5)
    with Loader(images_and_masks(folder), transform, batch_size=COUNT) as loader:
        batch = next(iter(loader))
        assert (batch.data == PICTURES * 0.5).all() and (batch.mask == MASKS).all()


def test_masks_are_not_left_behind(folder):
    """A mirrored image with a mask that is not mirrored would be silently wrong."""
    for options in dict(mirror=True), dict(crop_size=4):
        with pytest.raises(ValueError, match="moves the pixels of data, and not those of mask, which would not fit"):
            Loader(images_and_masks(folder), Transform(**options))
    with Loader(ImageListSource(NAMES, folder / "images"), Transform(mirror=True)):
        pass


def test_arrays_of_masks_beside_files_are_not_left_behind(folder):
    """The size of the first image says whether an array holds masks."""
    images = ImageListSource(NAMES, folder / "images")
    boxes = np.zeros((COUNT, 2, 4), np.float32)
    for source in (
        ImageListSource(NAMES, folder / "images", mask=MASKS[:, 0], box=boxes),
        Joined(images, mask=MASKS[:, 0], box=boxes),
        Joined(images, mask=MASKS[:, 0].astype(np.int64))[::-1],
    ):
        for options in dict(mirror=True), dict(crop_size=4), dict(random_resized_crop=5):
            with pytest.raises(
                ValueError, match=r"mask, whose samples have shape \(12, 10\), would not fit it any more"
            ):
                Loader(source, Transform(**options))
        with Loader(source, Transform(scale=2)):
            pass
    with Loader(Joined(images, box=boxes), Transform(crop_size=4)):
        pass


def test_arrays_of_masks_beside_files_move_with_the_images(folder):
    source = Joined(ImageListSource(NAMES, folder / "images"), mask=MASKS[:, 0])
    transform = Transform(crop_size=(5, 6), padding=2, mask_fill=255, mirror=True, fields=("data", "mask"))
    with Loader(source, transform, batch_size=COUNT, seed=3) as loader:
        batch = next(iter(loader))
    for i, raw in enumerate(draws(3, 0, COUNT)):
        geometry = {"crop_size": (5, 6), "padding": 2, "mirror": True}
        assert (batch.data[i] == placed(PICTURES[i], raw, **geometry)).all()
        assert (batch.mask[i] == placed(MASKS[i], raw, fill=255, **geometry)[0]).all()


def test_an_array_of_masks_beside_a_damaged_first_image(folder):
    (folder / "images" / NAMES[0]).write_bytes(b"nothing")
    source = ImageListSource(NAMES, folder / "images", mask=MASKS[:, 0])
    with Loader(source, Transform(mirror=True)) as loader:
        batches = iter(loader)
        with pytest.raises(SampleError, match=NAMES[0]):
            next(batches)
        with pytest.raises(SampleError, match=f"{NAMES[1]}.*and not those of its mask, which would not fit any more"):
            next(batches)
    table = Joined(ImageListSource(NAMES, folder / "images"), table=MASKS[:, 0, 1:])
    with Loader(table, Transform(mirror=True), on_error="skip", batch_size=COUNT) as loader:
        assert next(iter(loader)).table.shape == (COUNT - 1, 11, 10)


def test_databases(tmp_path):
    if features()["lmdb"] is None or features()["leveldb"] is None:
        pytest.skip("built without LMDB or LevelDB")
    first, _ = image_lmdb(tmp_path / "lmdb", COUNT)
    second, _ = image_leveldb(tmp_path / "leveldb", COUNT, (1, 12, 10), seed=1)
    with LMDBSource(first) as one, LevelDBSource(second) as other:
        numbers = np.arange(COUNT)
        with Loader(one, batch_size=COUNT) as loader:
            keys = next(iter(loader)).sample_keys
        source = Joined(one, other=other)
        check_source(source, expected(data=PICTURES, label=numbers, other=MASKS, other_label=numbers), keys)


def test_subsets_of_what_is_joined_and_joined_subsets(folder):
    whole = images_and_masks(folder)
    chosen = [5, 0, 3]
    keys = [NAMES[i].encode() for i in chosen]
    fields = expected(data=PICTURES[chosen], label=LABELS[chosen], mask=MASKS[chosen])
    check_source(whole[chosen], fields, keys)
    check_source(Joined(whole.sources[0][chosen], mask=whole.sources[1][chosen]), fields, keys)
    check_source(Joined(whole[chosen], ArraySource(weight=LABELS[:3])), {**fields, "weight": list(LABELS[:3])}, keys)


def test_errors_name_the_source_they_come_from(folder):
    source = images_and_masks(folder)
    (folder / "masks/2.png").unlink()
    (folder / "images/4.png").unlink()
    with Loader(source, batch_size=1, threads=2, timeout=PATIENCE) as loader:
        for _ in range(3):
            batches = iter(loader)
            for index in range(COUNT):
                if index not in (2, 4):
                    assert (next(batches).mask == MASKS[index]).all()
                    continue
                with pytest.raises(SampleError) as caught:
                    next(batches)
                what = "in images: " if index == 2 else ""
                missing = folder / ("masks" if index == 2 else "images") / f"{index}.png"
                assert caught.value.reason == f"{what}Could not open or find file {missing}: No such file or directory"
                assert (caught.value.index, caught.value.key) == (index, f"{index}.png".encode())


def test_sources_that_write():
    first, second = ThirdParty(COUNT, writes=True), ThirdParty(COUNT, writes=True)
    second.native.source.shared_batches = True
    first.native.source.done = first.native.count_done
    second.native.source.locate = None
    with (
        Loader(Joined(first, second=second), batch_size=COUNT, threads=2, timeout=PATIENCE) as loader,
        pytest.raises(SampleError, match="nobody asked for a file"),  # of the first, in shared memory
    ):
        next(iter(loader))
    second.native.source.shared_batches = False
    with Loader(Joined(first, second=second), batch_size=COUNT, threads=2, timeout=PATIENCE) as loader:
        batch = next(iter(loader))
        assert batch.label.tolist() == batch.second_label.tolist() == list(range(COUNT))
        assert (batch.second == np.arange(COUNT).reshape(-1, 1, 1, 1)).all()
    assert first.native.deleted == second.native.deleted == 2


def test_each_source_has_memory_of_its_own():
    party = ThirdParty(200)
    party.native.source.locate = None
    party.native.scratch = 64 << 20  # sample 0 alone takes that much
    with Loader(Joined(ArraySource(np.zeros(200)), other=party), batch_size=50, threads=2, timeout=PATIENCE) as loader:
        for _ in range(3):
            assert sum(len(batch) for batch in loader) == 200


def test_a_source_ends_early():
    party = ThirdParty(COUNT)
    party.native.source.count = 2**64 - 1
    party.native.end, party.native.said = 2, 2
    with Loader(Joined(ArraySource(LABELS), party=party), timeout=PATIENCE, threads=1) as loader:
        batches = iter(loader)
        next(batches), next(batches)
        with pytest.raises(SourceError, match="in third party: the source has only 2 samples now"):
            next(batches)


def test_what_cannot_be_joined():
    array, short = ArraySource(LABELS), ArraySource(LABELS[:3])
    with pytest.raises(ValueError, match="have different numbers of samples: ArraySource has 7, mask has 3"):
        Joined(array, mask=short)
    with pytest.raises(ValueError, match="1 sources are given; 2 to 16 can be joined"):
        Joined(array)
    with pytest.raises(TypeError, match=r"Joined takes sources and arrays, and mask is \[1, 2\]: of a list, make an"):
        Joined(array, mask=[1, 2])
    with pytest.raises(TypeError, match="Joined takes sources and arrays, and one is 'a.txt'"):
        Joined("a.txt", array)
    with pytest.raises(ValueError, match=r"mask has shape \(\)"):
        Joined(array, mask=np.array(3))
    with pytest.raises(ValueError, match="different numbers of samples: ArraySource has 7, mask has 3"):
        Joined(LABELS, mask=LABELS[:3])
    with pytest.raises(ValueError, match=r"two of the sources have a field 'data': give one of them by another name"):
        Loader(Joined(array, array))
    many = ArraySource(**{f"f{i}": LABELS for i in range(16)})
    with pytest.raises(ValueError, match="more than 16 fields together"):
        Loader(Joined(array, many))
    with pytest.raises(TypeError, match="some of the sources write into the batch themselves, and others do not"):
        Loader(Joined(array, other=ThirdParty(COUNT, writes=True)))


def test_two_codecs(folder):
    party = ThirdParty(COUNT)
    party.use_codec()
    party.show_encoded(0, MASKS[0, 0])
    with pytest.raises(TypeError, match="ThirdParty has another codec than the sources before it"):
        Loader(Joined(ImageListSource(NAMES, folder / "images"), mask=party))


def test_a_source_that_has_grown():
    party = ThirdParty(COUNT)
    source = Joined(ArraySource(LABELS), party=party)
    party.native.source.count = COUNT + 1
    with pytest.raises(SourceError, match="has 8 samples now, and not 7 any more"):
        Loader(source)


@pytest.mark.parametrize("color, channels", [("color", 3), ("gray", 1)])
def test_the_shape_of_resized_images_is_known_beforehand(folder, color, channels):
    source = ImageListSource(NAMES, folder / "images", color=color, size=(6, 5))
    with pytest.raises(ValueError, match="the transform does not fit data"):
        Loader(source, Transform(crop_size=7))
    with Loader(source, batch_size=COUNT) as loader:
        assert next(iter(loader)).data.shape == (COUNT, channels, 6, 5)
