"""ImageFolderSource: folders of images by class, in the order of torchvision's ImageFolder."""

import os
import pickle

import numpy as np
import pytest

from contracts import check_source
from fastbatch import ImageFolderSource, Loader, SampleError, SourceError, features
from jpegs import encode_png

pytestmark = pytest.mark.skipif(
    features()["jpeg"] is None or features()["png"] is None, reason="built without decoders"
)

# In the order of the samples: classes sorted, then folders by their paths as strings, then files.
NAMES = [
    "Zebra/1.PNG",
    "cat/b.png",
    "cat/c.png",
    "cat/a-b/0.png",
    "cat/a/b/0.png",
    "dog/10.png",
    "dog/9.Png",
]


def write(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((4, 3, 3), number, np.uint8), 2, 8))


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(NAMES):
        write(tmp_path / "train" / name, number)
    for hidden in "loose.png", ".git/x.png", "cat/.ipynb_checkpoints/x.png", "cat/._b.png":
        write(tmp_path / "train" / hidden)
    (tmp_path / "train/cat/Thumbs.db").write_bytes(b"")
    return tmp_path / "train"


def expected():
    labels = [0, 1, 1, 1, 1, 2, 2]
    return {
        "data": [np.full((3, 4, 3), number, np.uint8) for number in range(len(NAMES))],
        "label": [np.int64(label) for label in labels],
    }


def test_classes_and_samples(root):
    keys = [name.encode() for name in NAMES]
    for given in root, str(root), os.fsencode(root), f"{root}/":
        source = ImageFolderSource(given)
        assert source.classes == ["Zebra", "cat", "dog"]
        assert source.class_to_index == {"Zebra": 0, "cat": 1, "dog": 2}
        assert source.arrays["label"].tolist() == [0, 1, 1, 1, 1, 2, 2]
        assert source.shape == source.shape_of(6) == (3, 4, 3)
    check_source(source, expected(), keys)
    assert repr(source) == f"ImageFolderSource('{root}/', 7 images of 3 classes)" and source.path == f"{root}/"
    with source as same:
        assert same is source


def test_color_and_size(root):
    with Loader(ImageFolderSource(root, color="gray", size=(9, 8)), batch_size=7) as loader:
        assert next(iter(loader)).data.shape == (7, 1, 9, 8)


def test_a_pickled_source_has_the_samples_of_the_first(root):
    source = ImageFolderSource(root)
    write(root / "aardvark/0.png")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.classes == source.classes and len(ImageFolderSource(root)) == 8
    check_source(copy, expected(), [name.encode() for name in NAMES])


def test_links_are_followed(root, tmp_path):
    write(tmp_path / "elsewhere/more/5.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "dog/11.png").symlink_to(tmp_path / "elsewhere/more/5.png")
    (root / "cat/twice").symlink_to(tmp_path / "elsewhere")
    source = ImageFolderSource(root)
    assert source.classes == ["Zebra", "cat", "dog", "linked"] and len(source) == 10
    (root / "dog/round").symlink_to(root)
    with pytest.raises(SourceError, match=f"{root}/dog/round/dog leads back, through a link, to a folder that it"):
        ImageFolderSource(root)


def test_a_name_that_is_not_utf8(root):
    name = os.fsencode(root) + b"/dog/\xff.png"
    os.rename(root / "dog/10.png", name)
    assert len(ImageFolderSource(root)) == 7


def test_errors_of_samples_name_the_folder(root):
    source = ImageFolderSource(root)
    (root / "dog/9.Png").unlink()
    with pytest.raises(SampleError, match=f"{root}, sample 6 .*Could not open or find file {root}/dog/9.Png: No such"):
        source.shape_of(6)


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "has no folder in it, and each class needs one, such as "),
        (["a.png"], "has no folder in it, and each class needs one, such as "),
        (
            ["a/1.png", "b/", "c/1.txt"],
            r"the class b has no image \(.jpeg, .jpg, .png\) in .*/b, and neither have 1 other",
        ),
        (["a/1.png", "b/"], "the class b has no image .*/b: every folder in .* is a class; take away what is none"),
        (["a/1.png", "a/b/2.BMP"], "a/b/2.BMP is an image that cannot be decoded; JPEG and PNG can. Convert it"),
    ],
)
def test_what_is_no_folder_of_images(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=message):
        ImageFolderSource(tmp_path)


def test_no_folder_at_all(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, reason in (tmp_path / "no", "No such file"), (tmp_path / "file", "Not a directory"), ("a\0b", "null"):
        with pytest.raises(SourceError, match=f"cannot read the folder of images .*: .*{reason}"):
            ImageFolderSource(path)


def test_a_loader_names_the_way(root):
    with pytest.raises(TypeError, match=f"with a folder for each class, say fastbatch.ImageFolderSource\\('{root}'\\)"):
        Loader(root)
    with pytest.raises(TypeError, match="is a folder without a database"):
        Loader(root / "dog")
