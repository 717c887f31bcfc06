# cython: language_level=3
"""`ImageListSource`: image files by their paths, read and decoded by the loader's threads."""

import operator
import os
import re
from collections.abc import Mapping, Set

import numpy

from fastbatch import _features
from fastbatch._contract import DTYPES
from fastbatch._files import quoted, read_file
from fastbatch._text import counted, there_are
from fastbatch.sources._fields import check_fields
from fastbatch.sources._list_files import parse_labels, require_text
from fastbatch.sources._subset import Subset
from fastbatch.errors import SampleError, SourceError

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._contract cimport (
    FB_COLOR, FB_ENCODED, FB_MAX_FIELDS, FB_SOURCE_CAPSULE, FB_UINT8, FB_UNCHANGED, color_of, fb_codec, fb_decoding,
    fb_error, fb_field, fb_index, fb_record, fb_scratch, fb_source, fb_view, fb_worker, image_codec,
    shape_of_encoded, size_of
)
from fastbatch._threads cimport atomic_add, atomic_get, atomic_set, now
from fastbatch.sources._arrays cimport Array, show_sample, take_array
from fastbatch.sources._image_index cimport ImageIndex

cdef extern from "../native/files/file.h" nogil:
    ctypedef struct fb_file_bytes:
        size_t size
        uint64_t identity
    int fb_read_file(const char *path, size_t root, fb_scratch *scratch, fb_file_bytes *bytes,
                     fb_error *error) noexcept
    void fb_expect_file(const char *path) noexcept


# ---- The lines of a list ----

cdef struct Line:
    const char *path  # including the root folder, for open()
    const char *key  # without the root folder; points into `path`


LABEL = re.compile(rb"[\t\v\f\r]*[+-]?[0-9]+[\t\v\f\r]*")


def parse_list(bytes content, source):
    """Parses a list file's bytes as Caffe's ImageData does, to [(name, label), ...].

    The label is what follows the last space of a line. Caffe reads it with C's atoi(), which skips tabs and the like
    before the digits and stops after them, so white space around a label does no harm.

    Where Caffe would continue with a wrong name or label, this function raises a SourceError with the line number: for
    a blank line, a missing label, a label that is not an integer, a tab instead of the space, or an encoding other
    than the file system's.
    """
    require_text(content, source, "names of images and their labels")
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # the file ends in a line end
    found = []
    for number, line in enumerate(lines, start=1):
        name, space, label = line.rpartition(b" ")
        if not line.strip():
            problem = "is blank"
        elif not space and b"\t" in line.strip():
            problem = "has a tab between name and label, where a space belongs"
        elif not space:
            problem = "has no label: it is a name, a space, and an integer"
        elif not LABEL.fullmatch(label):
            problem = f"ends in {quoted(label.rstrip())}, which is not an integer label"
        elif len(label.strip()) > 64 or not -2**31 <= int(label) < 2**31:  # Python refuses to read thousands of digits
            problem = f"has the label {quoted(label.strip())[1:-1]}, which is not a 32-bit integer"
        elif not name:
            problem = "has no name before its label"
        else:
            found.append((name, int(label)))
            continue
        raise SourceError(f"{source}: line {number} {problem}")
    if not found:
        raise SourceError(f"{source}: File is empty")
    return found


cdef object label_of(number, label):
    """Returns the label of pair `number` as an int."""
    try:
        value = operator.index(label)
    except TypeError:
        raise TypeError(f"image {number} has the label {quoted(label)}, which is not an integer; for labels of other "
                        "kinds give the paths alone, and the labels as an array, label=") from None
    if not -2**63 <= value < 2**63:
        shown = f"the label {value}, which" if value.bit_length() < 200 else "a label that"
        raise ValueError(f"image {number} has {shown} is not a 64-bit integer")
    return value


cdef object images_of(images):
    """Returns (names as bytes, labels or None) of a sequence of paths, or of pairs (path, label)."""
    if isinstance(images, (Mapping, Set)):
        kind = type(images).__name__
        way = "list(d.items())" if isinstance(images, Mapping) else "sorted(paths)"
        raise TypeError(f"images is a {kind}, but a list is needed, in which each image has its place: give {way}")
    names = []
    labels = []
    for number, item in enumerate(images):
        alone = isinstance(item, (str, bytes, os.PathLike))
        try:
            name, label = (item, None) if alone else item
            names.append(os.fsencode(name))
        except (TypeError, ValueError):
            raise TypeError(f"image {number} is {quoted(item)}; it should be a path, or a pair of a path and "
                            "an integer label") from None
        if not alone:
            labels.append(label_of(number, label))
        if len(labels) not in (0, len(names)):
            raise TypeError(f"image {number} has {'no' if alone else 'a'} label, unlike those before it: "
                            "give all of them a label, or none")
    return names, labels or None


cdef object count_of(labels):
    """Returns the number of labels in a line."""
    if labels is None:
        return 1
    try:
        if isinstance(labels, bool):
            raise TypeError
        count = operator.index(labels)
    except TypeError:
        raise TypeError(f"labels is {quoted(labels)}; it is the number of labels in each line of a list file. An array "
                        "of labels is given as label=") from None
    if not 0 <= count <= 2**20:
        raise ValueError(f"labels is {count}; it is the number of labels in each line of a list file, 0 to {2**20}")
    return count


cdef object dtype_of(label_dtype):
    """Returns the type of a list's labels."""
    dtype = numpy.dtype(numpy.int64 if label_dtype is None else label_dtype)
    if dtype not in DTYPES or dtype.kind not in "iuf":
        raise TypeError(f"label_dtype is {dtype}; labels are integers or floats, in the machine's own byte order")
    return dtype


# ---- What workers do ----

cdef struct Reader:
    fb_source source
    fb_field fields[FB_MAX_FIELDS]  # the image first
    Array arrays[FB_MAX_FIELDS]  # the others, by the same number
    fb_decoding decoding
    fb_index *indexes[FB_MAX_FIELDS]
    const Line *lines
    int32_t ahead  # files that are still to be fetched ahead; atomic


cdef enum:
    FETCHED = 256  # files that are fetched ahead after one that was read slowly

cdef int64_t slow = 150000  # nanoseconds. From memory, a photograph is read in a fifth of that


def fetch_if_slower(seconds):
    """Sets from which time for a file on the following ones are fetched ahead, for tests and benchmarks.

    Returns the former one.
    """
    global slow
    former, slow = slow * 1e-9, <int64_t>min(seconds * 1e9, 2.0**62)
    return former


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    cdef const Line *line = &(<Reader *>self).lines[record.index]
    record.key = line.key
    record.key_size = strlen(line.key)
    record.data = line
    return 0


cdef int read_image(const Line *line, fb_scratch *scratch, fb_file_bytes *bytes, fb_error *error) noexcept nogil:
    return fb_read_file(line.path, <size_t>(line.key - line.path), scratch, bytes, error)


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef const Line *line = <const Line *>record.data
    cdef fb_file_bytes file
    cdef int64_t begin
    cdef uint32_t i
    if not worker.cached & 1:
        begin = now()
        if read_image(line, worker.scratch, &file, error) != 0:
            return -1
        if now() - begin > slow:
            atomic_set(&reader.ahead, FETCHED)
        views[0].data = worker.scratch.data
        views[0].dtype = FB_ENCODED
        views[0].ndim = 1
        views[0].shape[0] = <int64_t>file.size
        views[0].strides[0] = 1
        views[0].scalar = <int64_t>file.identity
    for i in range(1, reader.source.field_count):
        show_sample(&reader.arrays[i], record.index, &views[i])
    return 0


cdef void expect(void *self, uint64_t index) noexcept nogil:
    """Fetches a file ahead, if files are not in memory anyway."""
    cdef Reader *reader = <Reader *>self
    if atomic_get(&reader.ahead) > 0:
        atomic_add(&reader.ahead, -1)
        fb_expect_file(reader.lines[index].path)


cdef void delete_reader(object capsule) noexcept:
    cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    take_owner(capsule)
    free(reader)


# ---- The sources ----

@cython.final
cdef class ImageListSource:
    """Images from JPEG and PNG files, with any number of arrays that have a row for each image.

    The field "data" is the image: uint8, channels x height x width, blue first. Then come "label", if the list has
    labels, and the arrays in the order in which they are given::

        ImageListSource("train.txt")                                # lines like `cats/1.jpg 0`
        ImageListSource("train.txt", labels=20)                     # an image's path and 20 numbers
        ImageListSource(paths, label=labels, weight=weights)        # arrays with a row for each path
        ImageListSource(paths, box=[boxes of each image])           # n x 4 arrays: "box", and "box_count"

    Parameters
    ----------
    images : str, path-like, sequence of (path, int), or sequence of paths
        A list file, a sequence of (path, label) pairs, or a sequence of paths. A list file must be a regular file. As
        for Caffe's ImageData, each line holds an image's path, a space and its label. A source of paths alone has no
        "label".
    root_folder : str or path-like
        The folder that holds relative paths, joined with `os.path.join`. (`fastbatch.caffe.ImageData` prepends it
        verbatim, as Caffe does.)
    color : str
        ``"color"`` (3 channels), ``"gray"`` (1 channel) or ``"unchanged"``. The first two are oriented by the EXIF tag.
    size : int or (int, int), optional
        Resize to this (height, width), or to a square, with OpenCV's linear interpolation.
    labels : int, optional
        For a list file: how many numbers end each line, with spaces or tabs between. They become the field "label", of
        that many values; one number is a scalar. 0: the lines are paths. By default 1, an integer as Caffe reads it.
    label_dtype : dtype, optional
        The labels' type, such as "float32". By default int64.
    index_bytes : int, optional
        The most memory that the index of JPEG files may take, which makes the decoding of crops faster from the second
        epoch on (docs/jpeg.md). By default 512 MiB; 0: no index; otherwise at least 1024.
    index_file : str or path-like, optional
        The file that keeps this index from run to run: read if it exists, and written with what was noted at the end
        of each epoch and when a loader is closed.
    **arrays
        Further fields: arrays with a row for each image, of any type and shape that batches have. A list of NumPy
        arrays of different lengths is filled up with zeros to the longest one, and gets a second field, its name with
        "_count", which holds the lengths (int64).

    Raises
    ------
    SourceError
        The list cannot be read or is malformed. The message gives the line number.
    TypeError, ValueError
        An image is neither a path nor a pair, or its label is not a 64-bit integer. The message gives its index,
        counted from 0. Or an array has a type that batches do not have, or another number of rows than there are
        images.
    MissingLibraryError
        This fastbatch was built without libjpeg-turbo or libpng.

    Notes
    -----
    A sample's key is its path as given, as bytes. Workers open a file only when its sample is due, one file at a time
    per thread. A file that cannot be read or decoded is a SampleError of its batch. Each thread keeps as much memory as
    the largest file needs, plus what decoding takes.

    The source keeps references to the arrays, as `ArraySource` does. It is immutable; any number of loaders may read it
    at once.
    """

    cdef readonly str path
    """The list file, or "images"."""
    cdef readonly dict arrays
    """The fields after the image, by name: "label" of a list that has labels, and the arrays given."""
    cdef list paths
    cdef Line *lines
    cdef bytes name
    cdef fb_decoding decoding
    cdef tuple options  # of __init__: root_folder, color, size, labels, label_dtype, index_bytes, index_file
    cdef bint labelled  # by the list
    cdef bint listed  # in a list file
    cdef ImageIndex index

    def __init__(self, images, root_folder="", color="color", size=None, *, labels=None, label_dtype=None,
                 index_bytes=None, index_file=None, **arrays):
        if self.lines != NULL:
            raise RuntimeError("an ImageListSource cannot be initialized twice")
        self.index = ImageIndex(index_bytes, index_file)
        _features.require("jpeg")
        self.decoding.color = color_of(color)
        self.decoding.new_height, self.decoding.new_width = size_of(size)
        if not isinstance(root_folder, (str, bytes, os.PathLike)):
            raise TypeError(f"root_folder is {quoted(root_folder)}; it is the folder that holds the images. Labels and "
                            "other arrays are given by name, such as label=")
        if isinstance(images, (str, bytes, os.PathLike)):
            self.path = os.fsdecode(images)
            self.listed = True
            names, found = self._read_list(images, labels, label_dtype)
        else:
            if labels is not None or label_dtype is not None:
                raise TypeError("labels and label_dtype say what the lines of a list file hold, and images is a "
                                "sequence: give its labels as an array, label=")
            self.path = "images"
            names, found = images_of(images)
            if not names:
                raise SourceError("the list of images is empty; a loader needs at least one sample")
        self.name = os.fsencode(self.path)
        root = os.fsencode(root_folder)
        self.options = (root, color, size, labels, label_dtype, index_bytes, index_file)
        self._keep(names, found, [os.path.join(root, name) for name in names], arrays)

    def _read_list(self, path, count=None, dtype=None):
        """Returns (names, labels or None) of a list file, with `count` labels in a line."""
        as_caffe = count is None and dtype is None
        count, dtype = count_of(count), dtype_of(dtype)
        try:
            content = read_file(path)
        except (OSError, ValueError) as problem:  # ValueError: of a path that holds a zero byte
            reason = getattr(problem, "strerror", None) or problem
            more = ""
            if isinstance(problem, IsADirectoryError):
                more = "; for a folder with a folder for each class say ImageFolderSource"
            raise SourceError(f"cannot read the list of images {quoted(self.path)[1:-1]}: {reason}{more}") from None
        if not as_caffe:
            return parse_labels(content, self.path, count, dtype)
        pairs = parse_list(content, self.path)
        return [name for name, _ in pairs], [label for _, label in pairs]

    def _keep(self, names, labels, paths, arrays):
        """Keeps what the workers read. `labels`: those of the list, or None."""
        cdef Py_ssize_t i
        cdef const char *path
        self.paths = paths
        self.labelled = labels is not None
        self.arrays = {"label": numpy.asarray(labels)} if self.labelled else {}
        self.arrays.update(check_fields(arrays, len(paths), ("data", *self.arrays)))
        if any(b"\0" in path for path in paths):
            raise ValueError("a path holds a zero byte")
        self.lines = <Line *>calloc(len(paths), sizeof(Line))
        if self.lines == NULL:
            raise MemoryError()
        for i in range(len(paths)):
            path = paths[i]
            self.lines[i].path = path
            self.lines[i].key = path + <Py_ssize_t>(len(paths[i]) - len(names[i]))

    def __dealloc__(self):
        free(self.lines)

    def __len__(self):
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, indices):
        """Return the `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    def __repr__(self):
        return f"ImageListSource({self.path!r}, {counted(len(self), 'image')})"

    @property
    def shape(self):
        """The first image's (channels, height, width), from its file's header; SampleError if that is unreadable."""
        return self.shape_of(0)

    def shape_of(self, Py_ssize_t index):
        """Return image `index`'s (channels, height, width), from its file's header.

        Raises SampleError if the header cannot be read.
        """
        cdef fb_scratch scratch
        cdef fb_error error
        cdef const fb_codec *codec = image_codec()
        cdef int64_t[3] shape
        cdef fb_file_bytes file
        cdef int code
        cdef Line *line
        if not 0 <= index < len(self.paths):
            raise IndexError(f"{there_are(len(self.paths), 'image')}, and no {index}")
        line = &self.lines[index]
        memset(&scratch, 0, sizeof(scratch))
        memset(&error, 0, sizeof(error))
        with nogil:
            code = read_image(line, &scratch, &file, &error)
            if code == 0:
                code = shape_of_encoded(codec, scratch.data, file.size, &self.decoding, shape, &error)
            free(scratch.data)
        if code != 0:
            raise SampleError(self.path, <bytes>line.key, index, "read", error.text.decode("utf-8", "replace"))
        return shape[0], shape[1], shape[2]

    def __reduce__(self):
        if self.options is None:
            raise TypeError("cannot pickle an image list of the Caffe layers")
        arrays = dict(self.arrays)
        images = self.path
        if self.labelled:
            labels = arrays.pop("label").tolist()
        if not self.listed:
            images = [<bytes>self.lines[i].key for i in range(len(self.paths))]
            if self.labelled:
                images = list(zip(images, labels))
        return source_of, (images, self.options, arrays, self.path)

    def close(self):
        """Do nothing: no file stays open."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h)."""
        cdef Reader *reader
        cdef fb_index *index
        cdef int i
        fields = check_fields(self.arrays, len(self.paths), ("data",))  # again, because the dict is mutable
        names, arrays = [name.encode() for name in fields], list(fields.values())
        index = self.index.take(<uint64_t>len(self.paths))
        reader = <Reader *>calloc(1, sizeof(Reader))
        if reader == NULL:
            raise MemoryError()
        reader.lines = self.lines
        reader.decoding = self.decoding
        reader.fields[0].name = "data"
        reader.fields[0].dtype = FB_UINT8
        reader.fields[0].ndim = -1
        if self.decoding.new_height and self.decoding.color != FB_UNCHANGED:  # then all have this shape
            reader.fields[0].ndim = 3
            reader.fields[0].shape[0] = 3 if self.decoding.color == FB_COLOR else 1
            reader.fields[0].shape[1] = self.decoding.new_height
            reader.fields[0].shape[2] = self.decoding.new_width
        for i in range(len(arrays)):
            take_array(names[i], arrays[i], &reader.arrays[i + 1], &reader.fields[i + 1])
        begin_source(&reader.source, reader, self.name, len(self.paths), reader.fields, 1 + len(arrays))
        reader.source.locate = locate
        reader.source.pure_locate = 1
        reader.source.read = read
        reader.source.expect = expect
        reader.source.codec = image_codec()
        reader.source.decoding = &reader.decoding
        reader.indexes[0] = index
        reader.source.indexes = reader.indexes
        return source_capsule(&reader.source, delete_reader, (self, names, arrays))


def source_of(images, options, arrays, path):
    """Returns an ImageListSource, for pickle."""
    root_folder, color, size, labels, label_dtype, index_bytes, index_file = options
    cdef ImageListSource source = ImageListSource(images, root_folder, color, size, labels=labels,
                                                  label_dtype=label_dtype, index_bytes=index_bytes,
                                                  index_file=index_file, **arrays)
    source.path = path
    source.name = os.fsencode(path)
    return source


def named_images(path, names, root_folder, color, size, index_bytes, index_file, **arrays):
    """Returns the `ImageListSource` of a list of paths, with the name `path` in messages."""
    return source_of(names, (root_folder, color, size, None, None, index_bytes, index_file), arrays, path)


def caffe_images(path, root_folder, color, size, index_bytes=None, index_file=None):
    """Returns the `ImageListSource` of a list file, with root_folder prepended to every name verbatim.

    Caffe's ImageData does the same: with the folder "train/n", the name "01.jpg" becomes "train/n01.jpg".
    """
    cdef ImageListSource source = ImageListSource.__new__(ImageListSource)
    _features.require("jpeg")
    source.index = ImageIndex(index_bytes, index_file)
    source.decoding.color = color_of(color)
    source.decoding.new_height, source.decoding.new_width = size_of(size)
    source.path = os.fsdecode(path)
    source.name = os.fsencode(source.path)
    names, labels = source._read_list(path)
    root = os.fsencode(root_folder)
    source._keep(names, labels, [root + name for name in names], {})
    return source
