"""The extensions, and the C files of fastbatch/native that are compiled into each.

setup.py builds what this module lists. tools/fuzz and tests/test_native.py compile the same C files without Python.
"""

NATIVE = "fastbatch/native"
INCLUDES = ["fastbatch/include", NATIVE]

# The C sources, by extension. build_support/libraries.py also names those that need a library.
C_SOURCES = {
    "fastbatch._core": [],
    "fastbatch._failures": [],
    "fastbatch._stages": [],
    "fastbatch._slots": ["memory.c", "keys.c"],
    "fastbatch._sequencer": [],
    "fastbatch._workers": [
        "memory.c",
        "keys.c",
        "cache.c",
        "pixels/transform.c",
        "pixels/pixels.c",
        "pixels/forms.c",
        "pixels/cut.c",
        "pixels/boxes.c",
        "images/resize.c",
        "pixels/kernels.c",
    ],
    "fastbatch._ring": ["cache.c"],
    "fastbatch._transform": [],
    "fastbatch._batch": [],
    "fastbatch._outputs": [],
    "fastbatch._cache": ["cache.c"],
    "fastbatch._indexes": [],
    "fastbatch._statistics": [],
    "fastbatch._bad_samples": [],
    "fastbatch._batches": [],
    "fastbatch._epoch": [],
    "fastbatch._contract": [],
    "fastbatch._queue": [],
    "fastbatch.orders._caffe": [],
    "fastbatch.orders._plain": [],
    "fastbatch.orders._positions": [],
    "fastbatch.orders._rows": [],
    "fastbatch.sources._arrays": [],
    "fastbatch.sources._callback": [],
    "fastbatch.sources._channels": ["mailbox.c", "memory.c"],
    "fastbatch.sources._image_index": [],
    "fastbatch.sources._image_list": [],
    "fastbatch.sources._joined": [],
    "fastbatch.sources._mailbox": ["mailbox.c"],
    "fastbatch.sources._seeding": [],
    "fastbatch.sources._subset": [],
    "fastbatch.sources._database": ["files/datum.c", "files/descriptors.c"],
    "fastbatch.sources._lmdb": ["files/datum.c", "files/descriptors.c", "files/lmdb_file.c"],
    "fastbatch.sources._leveldb": ["files/datum.c", "files/descriptors.c", "files/leveldb_files.c"],
    "fastbatch.images._codec": [
        "images/image.c",
        "images/jpeg.c",
        "images/jpeg_fast.c",
        "images/jpeg_huffman.c",
        "images/jpeg_mcus.c",
        "images/jpeg_pixels.c",
        "images/jpeg_index.c",
        "images/jpeg_index_file.c",
        "images/jpeg_check.c",
        "images/jpeg_kernels_avx2.c",
        "images/jpeg_kernels_base.c",
        "images/png.c",
        "images/png_fast.c",
        "images/exif.c",
        "images/resize.c",
        "images/interleave.c",
    ],
    "fastbatch.sources._windows": ["pixels/window.c", "files/window_file.c"],
    "fastbatch.sources._hdf5": ["files/hdf5_file.c"],
    "fastbatch.caffe.runtime._blob": [],
    "fastbatch.caffe.runtime._collection": [],
    "fastbatch.caffe.runtime._layer_param": [],
}
LIBRARIES = {
    "fastbatch._workers": ["m"],
    "fastbatch.sources._leveldb": ["dl"],
    "fastbatch.caffe.runtime._blob": ["dl"],
    "fastbatch.caffe.runtime._layer_param": ["dl"],
}


def c_sources(name):
    """The paths of an extension's C files, from the root of the checkout."""
    return [f"{NATIVE}/{source}" for source in C_SOURCES[name]]


def extensions(headers):
    """One Extension each. A change in one of the `headers` recompiles them all."""
    from setuptools import Extension  # here: a program that only reads the list may run without setuptools

    return [
        Extension(
            name,
            [name.replace(".", "/") + ".pyx", *c_sources(name)],
            include_dirs=INCLUDES,
            depends=headers,
            libraries=LIBRARIES.get(name, []),
        )
        for name in C_SOURCES
    ]
