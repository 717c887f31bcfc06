"""squares.c as a source for `fastbatch.Loader`. README.md says how to compile it."""

import ctypes
import sys

import fastbatch

NAME = b"fastbatch.source"  # FB_SOURCE_CAPSULE
python = ctypes.pythonapi
python.PyCapsule_New.restype = ctypes.py_object
python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
python.PyCapsule_GetPointer.restype = ctypes.c_void_p
python.PyCapsule_GetPointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


class SquaresSource:
    """`count` squares. `library` is the path of the compiled squares.c."""

    def __init__(self, count, library="./squares.so"):
        self.count = count
        self.library = ctypes.CDLL(library)
        self.library.squares_open.restype = ctypes.c_void_p
        self.library.squares_open.argtypes = [ctypes.c_uint64]
        self.library.squares_close.argtypes = [ctypes.c_void_p]
        # The capsule's destructor, called with the GIL after all workers have ended. This object must keep it alive.
        self.delete = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(
            lambda capsule: self.library.squares_close(python.PyCapsule_GetPointer(capsule, NAME))
        )

    def __len__(self):
        return self.count

    def __fastbatch_source__(self, random_access):
        native = self.library.squares_open(self.count)
        if not native:
            raise MemoryError(f"no memory for {self.count} squares")
        return python.PyCapsule_New(native, NAME, ctypes.cast(self.delete, ctypes.c_void_p))


if __name__ == "__main__":
    with fastbatch.Loader(SquaresSource(1000, *sys.argv[1:]), batch_size=100) as loader:
        for batch in loader:
            data, label = batch.values()
            print(data.shape, label[0], "to", label[-1])
