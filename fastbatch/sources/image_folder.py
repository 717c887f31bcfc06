"""`ImageFolderSource`: a folder of images with a folder for each class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Optional, SupportsIndex, Union

import numpy

from fastbatch._text import counted
from fastbatch.errors import SourceError
from fastbatch.sources._image_list import named_images
from fastbatch.sources._subset import Subset

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ImageFolderSource", "files_below"]

_DECODED = (".jpeg", ".jpg", ".png")
_NOT_DECODED = (".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolderSource:
    """Images from a folder that has one folder for each class: "data" (uint8) and "label" (int64).

    ::

        train/cat/1.jpg          source = ImageFolderSource("train", size=256)
        train/cat/more/2.png     source.classes         # ["cat", "dog"]
        train/dog/3.jpg          source.class_to_index  # {"cat": 0, "dog": 1}

    Parameters
    ----------
    root : str or path-like
        The folder. Each folder in it is a class; the names, sorted, are numbered from 0. An image may lie at any depth
        in its class's folder.
    color, size, index_bytes, index_file
        As for `ImageListSource`.

    Raises
    ------
    SourceError
        There is no such folder, or no class in it; or a folder cannot be read; or a class has no image; or an image is
        of a kind that cannot be decoded, such as .bmp or .webp.
    MissingLibraryError
        This fastbatch was built without libjpeg-turbo or libpng.

    Notes
    -----
    Classes, numbers and samples have the order of torchvision's ImageFolder. Images are the files that end in .jpg,
    .jpeg or .png, in any case; other files are not read, nor are files that lie in `root` itself. Unlike torchvision,
    names that begin with a dot, of files and of folders, are passed over. Links are followed.

    The folder is searched once, here. A sample's key is its path below `root`, as bytes. A pickled source has these
    paths, so that samples have the same numbers everywhere.

    The source is immutable; any number of loaders may read it at once.
    """

    def __init__(
        self,
        root: Union[str, bytes, os.PathLike[str], os.PathLike[bytes]],
        color: str = "color",
        size: Optional[Union[SupportsIndex, tuple[SupportsIndex, SupportsIndex]]] = None,
        index_bytes: Optional[SupportsIndex] = None,
        index_file: Optional[Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]] = None,
    ) -> None:
        self._root = os.fsdecode(root)
        self._classes, names, labels = _search(self._root)
        self._images = named_images(self._root, names, self._root, color, size, index_bytes, index_file, label=labels)

    @property
    def path(self) -> str:
        """The folder."""
        return self._root

    @property
    def classes(self) -> list[str]:
        """The names of the classes, sorted: label i is class i."""
        return list(self._classes)

    @property
    def class_to_index(self) -> dict[str, int]:
        """The label of each class by its name."""
        return {name: index for index, name in enumerate(self._classes)}

    @property
    def arrays(self) -> dict[str, numpy.ndarray[Any, Any]]:
        """The fields after the image by name: "label", with the class of each image."""
        return self._images.arrays

    @property
    def shape(self) -> tuple[int, int, int]:
        """The first image's (channels, height, width), from its file's header; SampleError if that is unreadable."""
        return self._images.shape

    def shape_of(self, index: int) -> tuple[int, int, int]:
        """Image `index`'s (channels, height, width), from its file's header."""
        return self._images.shape_of(index)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def __getitem__(self, indices: Any, /) -> Subset:
        """The `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    def __repr__(self) -> str:
        images, classes = counted(len(self), "image"), counted(len(self._classes), "class")
        return f"ImageFolderSource({self._root!r}, {images} of {classes})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def __fastbatch_source__(self, random_access: bool) -> Any:
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h)."""
        return self._images.__fastbatch_source__(random_access)


def _search(root: str) -> tuple[list[str], list[str], Any]:
    """The classes, the images' paths below `root`, and their labels."""
    classes, _ = _content(root)
    classes.sort()
    if not classes:
        raise SourceError(
            f"{root} has no folder in it, and each class needs one, such as {os.path.join(root, 'cat', '1.jpg')}; for "
            "images without classes say fastbatch.ImageListSource(paths)"
        )
    names: list[str] = []
    counts = []
    for each in classes:
        found = _images_of(root, each)
        names += found
        counts.append(len(found))
    empty = [name for name, count in zip(classes, counts) if count == 0]
    if empty:
        more = f", and neither have {len(empty) - 1} other classes" if len(empty) > 1 else ""
        raise SourceError(
            f"the class {empty[0]} has no image ({', '.join(_DECODED)}) in {os.path.join(root, empty[0])}{more}: every "
            f"folder in {root} is a class; take away what is none"
        )
    return classes, names, numpy.repeat(numpy.arange(len(classes), dtype=numpy.int64), counts)


def _images_of(root: str, folder: str) -> list[str]:
    """The paths below `root` of the images in a class's folder, in torchvision's order."""
    names = files_below(root, folder)
    for name in names:
        if name.lower().endswith(_NOT_DECODED):
            raise SourceError(
                f"{os.path.join(root, name)} is an image that cannot be decoded; JPEG and PNG can. Convert it, or give "
                "fastbatch.ImageListSource the paths of the others"
            )
    return [name for name in names if name.lower().endswith(_DECODED)]


def files_below(root: str, folder: str) -> list[str]:
    """The paths below `root` of the files in a folder and in its folders, folder by folder, without hidden ones.

    Links are followed. Raises SourceError if one leads back, or a folder cannot be read.
    """
    found = []
    todo: list[tuple[str, tuple[Any, ...]]] = [(folder, ())]  # and the folders that lead there
    while todo:
        folder, above = todo.pop()
        path = os.path.join(root, folder)
        folders, files = _content(path)
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise SourceError(f"{path} leads back, through a link, to a folder that it lies in")
        found.append((folder, sorted(files)))
        todo += [(os.path.join(folder, name), (*above, identity)) for name in folders]
    return [os.path.join(folder, name) for folder, files in sorted(found) for name in files]


def _content(path: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except (OSError, ValueError) as problem:  # ValueError: of a path that holds a zero byte
        reason = getattr(problem, "strerror", None) or problem
        raise SourceError(f"cannot read the folder of images {path}: {reason}") from None
    return folders, files
