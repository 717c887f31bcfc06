# cython: language_level=3
"""`CaffeWindows`: windows of image files, cropped and warped by the loader's threads as in Caffe's WindowData."""

import numpy

from fastbatch import _features
from fastbatch._text import counted
from fastbatch.sources._list_files import require_text
from fastbatch.errors import SampleError, SourceError

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._workers cimport check_means, normalize_pixels
from fastbatch._pixels cimport fb_arithmetic, fb_geometry
from fastbatch.sources._image_index cimport ImageIndex
from fastbatch._contract cimport (
    FB_COLOR, FB_FLOAT32, FB_INT64, FB_SOURCE_CAPSULE, fb_codec, fb_decoder, fb_decoding, fb_error,
    fb_fail, fb_field, fb_index, fb_place, fb_place_label, fb_record, fb_scratch, fb_source, fb_view, fb_worker,
    fb_worker_decoder, image_codec
)

cdef extern from "../native/files/file.h" nogil:
    ctypedef struct fb_file_bytes:
        size_t size
        uint64_t identity
    int fb_read_file(const char *path, size_t root, fb_scratch *scratch, fb_file_bytes *bytes,
                     fb_error *error) noexcept

cdef extern from "../native/pixels/window.h" nogil:
    enum:
        FB_WINDOW_CHANNELS

    ctypedef struct fb_window:
        int32_t image
        int32_t line
        int32_t label
        int32_t x1
        int32_t y1
        int32_t x2
        int32_t y2

    ctypedef struct fb_warp:
        int crop_size
        int context_pad
        int square

    int fb_window_choose(const fb_warp *warp, const fb_window *window, int image_height, int image_width, int mirror,
                         fb_geometry *geometry, fb_error *error) noexcept

cdef extern from "../native/files/window_file.h" nogil:
    ctypedef struct fb_window_image:
        const char *path
        size_t path_size
        int32_t height
        int32_t width
        int32_t windows

    ctypedef struct fb_window_list:
        fb_window *windows
        size_t count

    ctypedef struct fb_window_file:
        fb_window_image *images
        size_t count
        fb_window_list background
        fb_window_list foreground

    int fb_window_file_read(const char *bytes, size_t size, float foreground, float background, fb_window_file *file,
                            fb_error *error) noexcept
    void fb_window_file_free(fb_window_file *file) noexcept

COLUMNS = ("image", "line", "label", "x1", "y1", "x2", "y2")
"""Of the arrays of windows: the members of fb_window, all int32."""


# ---- The window file ----

def parse_windows(bytes content, source, bytes root_folder=b"", float fg_threshold=0.5, float bg_threshold=0.5):
    """Parses a window file's bytes as Caffe's WindowData does, to (images, foreground, background).

    images is a list of (path, height, width, number of windows), with `root_folder` prepended to the path. foreground
    and background are int32 arrays with one row per window, in file order, and the columns `COLUMNS`: the image (from
    0), the line (from 1), the class (0 for background), and the first and last column and row. Windows whose overlap
    lies between the thresholds are in neither array.

    Where Caffe would continue with wrong values, this function raises a SourceError with the line number: for a field
    that is not a number, images out of order, a channel count other than 3, a window that is inverted or outside its
    image, or a truncated file.
    """
    cdef fb_window_file file
    cdef fb_error error
    cdef const char *text = content
    cdef size_t size = <size_t>len(content)
    cdef int code
    cdef size_t i
    require_text(content, source, "images and their windows")
    memset(&file, 0, sizeof(file))
    try:
        with nogil:
            code = fb_window_file_read(text, size, fg_threshold, bg_threshold, &file, &error)
        if code != 0:
            raise SourceError(f"{source}: {error.text.decode('utf-8', 'backslashreplace')}")
        images = [(root_folder + file.images[i].path[:file.images[i].path_size], file.images[i].height,
                   file.images[i].width, file.images[i].windows) for i in range(file.count)]
        return images, array_of(&file.foreground), array_of(&file.background)
    finally:
        fb_window_file_free(&file)


cdef object array_of(const fb_window_list *found):
    """Returns a copy of the windows as an array."""
    cdef int32_t[:, ::1] values
    array = numpy.empty((found.count, len(COLUMNS)), numpy.int32)
    if found.count:
        values = array
        memcpy(&values[0, 0], found.windows, found.count * sizeof(fb_window))
    return array


# ---- What workers do ----

cdef struct Picture:
    const char *path
    int height
    int width
    fb_scratch file  # the file's bytes, with cache_images
    size_t bytes


cdef struct Windows:
    const fb_window *first
    uint64_t count

cdef struct Reader:
    fb_source source
    fb_field fields[2]
    const Picture *pictures
    size_t root  # length of the root folder, with which every path begins
    Windows[2] windows  # background, foreground
    fb_warp warp
    fb_arithmetic arithmetic
    fb_index *indexes[2]


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    """Finds a sample's window: every window is two samples, of which the odd one is mirrored; background first."""
    cdef Reader *reader = <Reader *>self
    cdef uint64_t number = record.index // 2
    cdef bint foreground = number >= reader.windows[0].count
    cdef const fb_window *window = &reader.windows[foreground].first[
        number - reader.windows[0].count if foreground else number]
    cdef const char *path = reader.pictures[window.image].path
    record.data = window
    record.data_size = record.index % 2
    record.index = <uint64_t>window.image  # errors report the image
    record.key = path
    record.key_size = strlen(path)
    return 0


cdef int write(void *self, const fb_record *record, fb_worker *worker, const fb_place *places,
               fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef const fb_window *window = <const fb_window *>record.data
    cdef fb_error reason
    if write_window(reader, worker, window, record.data_size == 1, <float *>places[0].data, &reason) != 0:
        # The sample's key is the path only, so the message identifies the window by its line in the list.
        return fb_fail(error, "%.400s. It was needed for the window %d %d %d %d (x1 y1 x2 y2) of line %d", reason.text,
                       window.x1, window.y1, window.x2, window.y2, window.line)
    return fb_place_label(&places[1], window.label, error)


cdef int write_window(Reader *reader, fb_worker *worker, const fb_window *window, bint mirror, float *out,
                      fb_error *error) noexcept nogil:
    cdef const Picture *picture = &reader.pictures[window.image]
    cdef const fb_codec *codec = reader.source.codec
    cdef fb_decoder *decoder = fb_worker_decoder(worker, 0, codec)
    cdef const void *bytes = picture.file.data
    cdef fb_file_bytes file
    cdef int64_t[3] shape
    cdef fb_view pixels
    cdef fb_geometry geometry
    if decoder == NULL:
        return fb_fail(error, "no memory for a decoder")
    if bytes == NULL:
        if fb_read_file(picture.path, reader.root, worker.scratch, &file, error) != 0:
            return -1
        bytes = worker.scratch.data
    else:
        file.size = picture.bytes
        file.identity = <uint64_t>bytes  # which stay there
    if codec.begin(decoder, bytes, file.size, reader.source.decoding, shape, error) != 0:
        return -1
    if reader.indexes[0] != NULL:
        codec.use_index(decoder, reader.indexes[0], file.identity)
    if shape[1] != picture.height or shape[2] != picture.width:
        return fb_fail(error,
                       "the image is %lld x %lld pixels wide and high, but %d x %d according to the list, so its "
                       "windows were measured on another image, or before its EXIF orientation was applied, or height "
                       "and width are swapped; Caffe does not check",
                       <long long>shape[2], <long long>shape[1], picture.width, picture.height)
    if fb_window_choose(&reader.warp, window, picture.height, picture.width, mirror, &geometry, error) != 0:
        return -1
    if codec.finish_resized(decoder, &geometry.region, <int>geometry.height, <int>geometry.width, &pixels, error) != 0:
        return -1
    if not normalize_pixels(&reader.arithmetic, &geometry, &pixels, out, worker.stop):
        return fb_fail(error, "nobody waits for it any more")
    return 0


# ---- The source ----

@cython.final
cdef class CaffeWindows:
    """Windows as Caffe's WindowData cuts them out.

    A sample has "data" (float32, 3 x crop_size x crop_size, blue first) and "label" (int64). Sample 2 w is window w,
    and sample 2 w + 1 is its mirror image. Background windows come first. `CaffeSampling` of `fastbatch.orders.caffe`
    is the order in which WindowData takes them.

    Parameters
    ----------
    images, foreground, background
        What `parse_windows` returns. Neither list of windows may be empty.
    source, root_folder : str, bytes
        The window file, and the prefix of every path in it. Both appear in messages only.
    crop_size, context_pad, square, scale
        Caffe's parameters; square stands for crop_mode "square". context_pad must be less than half of crop_size.
    mean_values : sequence of floats
        No, one, or three values.
    mean_image : float32 array (3, height, width), optional
        The crop_size square is taken at an offset of (width - crop_size) / 2 from the left and from the top. It must
        lie inside the mean image.
    cache_images : bool
        Read every file now, once per path, and keep its bytes. Images are still decoded on every use.
    tolerant : bool
        With cache_images, a file that cannot be read now is an error of its samples, as without.
    index_bytes, index_file : optional
        As for `ImageListSource`.

    Raises
    ------
    SourceError
        A list has no windows.
    SampleError
        With cache_images, a file cannot be read.
    ValueError
        The mean image is too small.
    MissingLibraryError
        This fastbatch was built without libjpeg-turbo or libpng.

    Notes
    -----
    A sample's key is its image's path. Without cache_images, workers open a file only when its sample is due, one file
    at a time per thread. A file that cannot be read or decoded, or whose size differs from the list's, is a SampleError
    of its batch. The error also names the window; its `index` is the image's.

    Each thread keeps memory for its largest file and for the pixels of its largest window, both decoded and resized to
    the square. The lists take 28 bytes per window.

    The source is immutable except for close(); any number of loaders may read it at once.
    """

    cdef readonly str path
    """The window file."""
    cdef bytes name
    cdef list paths
    cdef object arrays
    cdef Picture *pictures
    cdef Py_ssize_t pictures_count
    cdef size_t root
    cdef Py_ssize_t readers  # capsules that are alive
    cdef bint closed
    cdef Windows[2] windows
    cdef fb_warp warp
    cdef fb_arithmetic arithmetic
    cdef fb_decoding decoding
    cdef ImageIndex index

    def __init__(self, images, foreground, background, *, source, crop_size, root_folder=b"", context_pad=0,
                 square=False, scale=1.0, mean_values=(), mean_image=None, cache_images=False, tolerant=False,
                 index_bytes=None, index_file=None):
        cdef Py_ssize_t i
        cdef const char *path
        if self.pictures != NULL:
            raise RuntimeError("a CaffeWindows cannot be initialized twice")
        _features.require("jpeg")
        if crop_size < 1 or 2 * context_pad >= crop_size:
            raise ValueError(f"a context of {context_pad} pixels on each side leaves nothing of {crop_size}")
        self.index = ImageIndex(index_bytes, index_file)
        self.path = source
        self.name = source.encode("utf-8", "replace")
        self.root = <size_t>len(root_folder)
        self.decoding.color = FB_COLOR
        self.warp.crop_size, self.warp.context_pad, self.warp.square = crop_size, context_pad, square
        self.arithmetic.scale = scale
        self._take_mean(mean_values, mean_image)
        for i, (windows, which) in enumerate([(background, "background"), (foreground, "foreground")]):
            self._take_windows(i, windows, which, len(images))
        self.paths = [path for path, *_ in images]
        self.pictures = <Picture *>calloc(len(images), sizeof(Picture))
        if self.pictures == NULL:
            raise MemoryError()
        self.pictures_count = len(images)
        for i in range(self.pictures_count):
            path = self.paths[i]
            self.pictures[i].path = path
            _, self.pictures[i].height, self.pictures[i].width, _ = images[i]
        if cache_images:
            self._cache(tolerant)

    def _take_mean(self, mean_values, mean_image):
        cdef fb_arithmetic *native = &self.arithmetic
        cdef const float[:, :, ::1] image
        cdef const float[::1] values = numpy.array(mean_values, numpy.float32)
        cdef fb_error error
        self.arrays = [values, mean_image]
        native.mean_lies_on_output = True
        native.mean_value_count = <int>values.shape[0]
        if native.mean_value_count:
            native.mean_values = &values[0]
        if mean_image is not None:
            image = mean_image
            native.mean_image = &image[0, 0, 0]
            native.mean_shape[0], native.mean_shape[1], native.mean_shape[2] = (
                image.shape[0], image.shape[1], image.shape[2])
        if check_means(native, FB_WINDOW_CHANNELS, self.warp.crop_size, self.warp.crop_size, &error) != 0:
            raise ValueError(f"{self.path}: {error.text.decode('utf-8', 'replace')}")

    def _take_windows(self, Py_ssize_t foreground, array, which, Py_ssize_t images):
        cdef const int32_t[:, ::1] rows = array
        if rows.shape[0] == 0:
            raise SourceError(f"{self.path} has no {which} windows, with these thresholds of the overlap "
                              f"(in Caffe's words: Check failed: {'fg' if foreground else 'bg'}_windows_.size() > 0)")
        if rows.shape[1] != len(COLUMNS) or array[:, 0].min() < 0 or array[:, 0].max() >= images:
            raise ValueError(f"a row of {which} is {', '.join(COLUMNS)}, with one of the images")
        self.windows[foreground].first = <const fb_window *>&rows[0, 0]
        self.windows[foreground].count = <uint64_t>rows.shape[0]
        self.arrays.append(array)

    def _cache(self, bint tolerant):
        """Reads the files, each path only once."""
        cdef Picture *picture
        cdef fb_error error
        cdef Py_ssize_t i
        cdef Py_ssize_t first
        cdef fb_file_bytes file
        cdef int code
        seen = {}
        for i, path in enumerate(self.paths):
            picture = &self.pictures[i]
            first = seen.setdefault(path, i)
            if first != i:
                continue
            PyErr_CheckSignals()
            with nogil:
                code = fb_read_file(picture.path, self.root, &picture.file, &file, &error)
            if code == 0:
                picture.bytes = file.size
                continue
            if not tolerant:
                raise SampleError(self.path, path, i, "read", error.text.decode("utf-8", "replace"))
            free(picture.file.data)  # what had been read of it
            memset(&picture.file, 0, sizeof(fb_scratch))
        for i, path in enumerate(self.paths):
            self.pictures[i].bytes = self.pictures[seen[path]].bytes
            self.pictures[i].file.data = self.pictures[seen[path]].file.data

    cdef void free_unused(self) noexcept:
        """Frees the cached files if the source is closed and no loader can read them any more."""
        if self.closed and self.readers == 0:
            self.free_files()

    cdef void free_files(self) noexcept:
        cdef Picture *picture
        cdef Py_ssize_t i
        for i in range(self.pictures_count):
            picture = &self.pictures[i]
            if picture.file.size:  # of the path's first image, which owns the bytes
                free(picture.file.data)
            memset(&picture.file, 0, sizeof(fb_scratch))

    def __dealloc__(self):
        self.free_files()
        free(self.pictures)

    def __len__(self):
        """Return the number of samples: two for each window."""
        return 2 * (self.windows[0].count + self.windows[1].count)

    def __repr__(self):
        return f"CaffeWindows({self.path!r}, {counted(self.pictures_count, 'image')})"

    def close(self):
        """Free the cached files as soon as no loader can read them; later loaders read from the disk."""
        self.closed = True
        self.free_unused()

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h)."""
        cdef fb_index *index = self.index.take(self.pictures_count)
        cdef Reader *reader = <Reader *>calloc(1, sizeof(Reader))
        if reader == NULL:
            raise MemoryError()
        reader.pictures = self.pictures
        reader.root = self.root
        reader.windows[0] = self.windows[0]
        reader.windows[1] = self.windows[1]
        reader.warp = self.warp
        reader.arithmetic = self.arithmetic
        reader.indexes[0] = index
        reader.source.codec = image_codec()
        reader.fields[0].name = "data"
        reader.fields[0].dtype = FB_FLOAT32
        reader.fields[0].ndim = 3
        reader.fields[0].shape[0] = FB_WINDOW_CHANNELS
        reader.fields[0].shape[1] = reader.fields[0].shape[2] = self.warp.crop_size
        reader.fields[1].name = "label"
        reader.fields[1].dtype = FB_INT64
        begin_source(&reader.source, reader, self.name, len(self), reader.fields, 2)
        reader.source.locate = locate
        reader.source.write = write
        reader.source.decoding = &self.decoding
        reader.source.indexes = reader.indexes
        capsule = source_capsule(&reader.source, delete_reader, self)
        self.readers += 1
        return capsule


cdef void delete_reader(object capsule) noexcept:
    """The capsule's destructor, called after all workers have stopped reading."""
    cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    cdef CaffeWindows source = <CaffeWindows>take_owner(capsule)
    source.readers -= 1
    source.free_unused()
    free(reader)
