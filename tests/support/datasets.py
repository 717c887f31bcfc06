"""Data sets of a user's own, for tests of `PythonSource`. Worker processes import this file."""

import gc
import itertools
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings

import numpy as np

import fastbatch
from fastbatch.sources import _serving

SHAPE = (3, 9, 8)


def image(index):
    """The image of sample `index`."""
    return np.random.default_rng(index).integers(0, 256, SHAPE, dtype=np.uint8)


class Images:
    """`count` images with labels; some samples do what samples should not."""

    def __init__(self, count=20, **wrong):
        self.count = count
        self.wrong = wrong

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        for what, at in self.wrong.items():
            if at == index:
                getattr(self, what)()
        return image(index), index

    def raises(self):
        """Fail."""
        raise LookupError("no such image, 世界")

    def exits(self):
        """Leave."""
        sys.exit("enough")

    def dies(self):
        """End the process, as the kernel does when memory runs out."""
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(self):
        """Never come back."""
        time.sleep(1000)


class Small:
    """`count` samples that are their index. One of them waits until the gate is opened."""

    gate = threading.Event()

    def __init__(self, count, hangs):
        self.count = count
        self.hangs = hangs

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.hangs:
            self.gate.wait(1000)
        return index


class Speaks:
    """Samples that print, warn and log, at two levels, on whatever handlers there are."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        print("printed", index)
        logging.getLogger("speaks").warning("logged %d", index)
        logging.getLogger("speaks").info("informed %d", index)
        warnings.warn(f"warned {index}", stacklevel=1)
        return index


class SpeaksByItself(Speaks):
    """The same, with handlers of its own wherever it is unpickled."""

    def __setstate__(self, state):
        logging.basicConfig(level="INFO", format="OWN %(message)s")

    def __getstate__(self):
        return {"a": "state"}


class Unsized:
    """An iterable whose len() is an error, as that of some streams."""

    def __len__(self):
        raise TypeError("the length is not known")

    def __iter__(self):
        return iter(range(5))


class Counted:
    """Small samples. Each load is noted in a file; some samples fail, and one ends its process."""

    def __init__(self, path, count, fails=(), dies=None):
        self.path, self.count, self.fails, self.dies = path, count, fails, dies

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(file, b"%d\n" % index)
        os.close(file)
        if index in self.fails:
            raise LookupError(f"no sample {index}")
        if index == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Forks:
    """Sample 1 leaves a process behind, as long as a file exists; sample 2 ends the worker."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1 and os.fork() == 0:
            while os.path.exists(self.path):
                time.sleep(0.05)
            os._exit(0)
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class RandomNumbers:
    """Samples that random numbers make, as augmentations do."""

    def __init__(self, count=30):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return random.random(), np.random.rand(), np.uint64(fastbatch.current_sample().seed)  # noqa: NPY002


class Computes:
    """20 samples that take 10 ms of processor time each."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass
        return np.full(3, index)


class Stream:
    """`count` samples, one after the other: index and epoch. One of them raises."""

    def __init__(self, count=10, raises=None):
        self.count, self.raises = count, raises

    def __iter__(self):
        for index in range(self.count):
            if index == self.raises:
                raise LookupError("no more")
            yield index, fastbatch.current_sample().epoch


class SizedStream(Stream):
    """One that has a length."""

    def __len__(self):
        return self.count


def dying_stream():
    """Sample 4 ends the process."""
    for index in range(9):
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield index


def generate():
    """Samples without an end."""
    return map(np.float32, itertools.count())


def generator():
    """The same as a generator function."""
    yield from generate()


def slowly(index):
    """A sample that takes some milliseconds."""
    time.sleep(0.005)
    return image(index)


class Boxes:
    """Samples whose first value is empty."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"boxes": np.zeros((0, 4), np.float32), "id": index}


def boxes(index):
    """The boxes of sample `index`: none at all, or up to 3, as detection data sets have them."""
    return np.arange(16 * index, 16 * index + 4 * (index % 4), dtype=np.float32).reshape(-1, 4)


class Detections:
    """Images of one size with boxes. Every fourth one has none, and says so in its own way."""

    def __init__(self, count=8, **wrong):
        self.count = count
        self.wrong = wrong

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        sample = {"data": image(index), "boxes": boxes(index) if index % 8 else [], "id": index}
        return {**sample, **self.wrong} if index == 5 else sample


class Annotated:
    """Images with boxes, of which up to three count, and five points.

    If `ragged`, images have different heights, and samples have only the boxes that count, without the count.
    """

    def __init__(self, count=6, integers=False, ragged=False):
        self.count = count
        self.integers = integers
        self.ragged = ragged

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pick = np.random.default_rng(index)
        corners = np.sort(pick.uniform(-1, 15, (3, 2, 2)), axis=1)
        boxes = np.concatenate([corners.reshape(3, 4), pick.integers(0, 20, (3, 1))], axis=1)
        points = pick.uniform(-1, 15, (5, 2))
        kinds = (np.int64, np.int64) if self.integers else (np.float32, np.float64)
        height, count = 12 + index * self.ragged, int(pick.integers(0, 4))
        image = pick.integers(0, 256, (3, height, 15), dtype=np.uint8)
        sample = {"data": image, "points": points.astype(kinds[1]), "boxes": boxes.astype(kinds[0])}
        return {**sample, "boxes": sample["boxes"][:count]} if self.ragged else {**sample, "boxes_count": count}


def photo(index):
    """The image of sample `index`, of a size of its own."""
    shape = (3, 8 + index % 5, 20 - index % 7)
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


class Photos:
    """Images of different sizes, and gray masks of the same sizes. Sample 5 may have something else."""

    def __init__(self, count=12, **wrong):
        self.count = count
        self.wrong = wrong

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        sample = {"data": photo(index), "label": index, "mask": photo(index)[0]}
        return {**sample, **self.wrong} if index == 5 else sample


class Scenes(Photos):
    """Images of different sizes, with masks and boxes."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "boxes": boxes(index)}


def large(index):
    """Vectors of bytes; sample 3 has 64 MiB."""
    return np.full(1 << 26 if index == 3 else 1000 + index, index % 251, np.uint8)


class Lying:
    """Images whose worker says shapes that are not theirs: for each sample from 1 on, until there are no more."""

    def __init__(self, shapes):
        self.shapes = shapes

    def __getitem__(self, index):
        for room in [each for each in gc.get_objects() if type(each) is _serving.Room]:
            mailbox = getattr(room.mailbox, "mailbox", room.mailbox)
            room.mailbox = _Liar(mailbox, dict(enumerate(self.shapes, 1)).get(index))
        return {"data": np.zeros((3, 4, 4), np.float32), "label": index}

    def __len__(self):
        return len(self.shapes) + 2


class _Liar:
    def __init__(self, mailbox, shape):
        self.mailbox, self.shape = mailbox, shape

    def say_shape(self, number, shape):
        """Say another shape of the first field."""
        self.mailbox.say_shape(number, shape if number or self.shape is None else self.shape)


class Wordless(Exception):
    """An exception that cannot be printed."""

    def __str__(self):
        raise ValueError("no words")


class Speechless:
    """Sample 1 raises it."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise Wordless
        return index


class SlowToUnpickle:
    """Takes seconds before its first sample, as a process that imports a large library does."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return index

    def __setstate__(self, state):
        time.sleep(4)

    def __getstate__(self):
        return {"a": 1}


class Unpicklable(Exception):
    """An exception that cannot be made from its arguments."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def wordy(index):
    """Fails with a message that is longer than what is kept of it."""
    raise ValueError("x" + 400 * "é")


def fill(index, out):
    """Fills arrays with a sample's values."""
    out["data"][...] = image(index)
    out["label"][...] = index


class BecomesText(Exception):
    """An exception of which pickle makes something else."""

    def __reduce__(self):
        return str, ("not an exception",)


class Frozen(Exception):
    """An exception that allows no attributes."""

    def __setattr__(self, name, value):
        raise AttributeError(name)


class RaisesElsewhere(Exception):
    """An exception that raises something grave when another process than its own unpickles it."""

    def __reduce__(self):
        return unpickled_in, (os.getpid(),)


def unpickled_in(process):
    """An exception, in that process only."""
    if os.getpid() != process:
        raise GeneratorExit
    return RaisesElsewhere()


class FailsWith:
    """Three samples, of which the second one raises an exception of this class."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise self.kind
        return index


def bad_exception(index, out):
    """Fails with an exception that cannot be unpickled."""
    raise Unpicklable(1, 2) if index == 1 else ValueError("0 is looked at first") if index < 0 else Unpicklable(3, 4)


def of(index):
    """Sample 2 is not like the others."""
    return {"data": np.zeros((2, 3) if index != 2 else (3, 2), np.float32), "label": index}


class PageFaults:
    """Samples that need 6 MB in pieces, as decoding does, and say how many page faults their process had until then."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        pieces = [np.ones(2**17, np.float64) for _ in range(6)]  # each smaller than a huge page
        del pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Visited(Images):
    """As Images, with a counter that all processes share, and its lock. Who is killed would never release that."""

    def __init__(self, count, visits):
        super().__init__(count)
        self.visits = visits

    def __getitem__(self, index):
        self.visits.get_obj().value += 1
        return super().__getitem__(index)


class Licensed(Images):
    """As Images of 1000, if a file is there where it is unpickled."""

    def __init__(self, licence):
        super().__init__(1000)
        self.licence = licence

    def __setstate__(self, state):
        self.__dict__.update(state)
        if not self.licence.exists():
            sys.exit(1)


class Stuck:
    """A function that fills arrays, and that a process cannot unpickle before it is killed."""

    def __setstate__(self, state):
        time.sleep(1000)

    def __getstate__(self):
        return {"a": "state"}

    def __call__(self, index, out):
        raise AssertionError("no process loads a sample")


def exists(process):
    """Whether there is a process with this id that has not ended."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False
