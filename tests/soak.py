"""Everything at once, for as long as you like: loaders of all sources are opened, used, disturbed and closed.

    make soak MINUTES=60            or: python tests/soak.py --minutes 60 [--seed N]

Threads and the main thread do the same at random: open a loader of one of the sources, with random threads and
prefetch; go to a random position; take batches, some of which they keep for a while; save the position, and go on from
there with another loader, which has other threads; and leave it in one of the ways there are. Worker processes are
killed meanwhile. In the main thread a timer raises exceptions in the middle of everything. Every batch is compared with
the same one of a loader with a single thread. What was not there after the first tenth of the time must not be left at
the end: a thread, process, file descriptor, shared mapping, or memory.
"""

import argparse
import collections
import contextlib
import gc
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).with_name("support")))
import datasets
from children import anonymous_memory, native_threads
from databases import datum, encoded, images, write_leveldb, write_lmdb
from fastbatch import (
    ArraySource,
    ImageListSource,
    Joined,
    LevelDBSource,
    LMDBSource,
    Loader,
    PythonSource,
    SampleError,
    SourceError,
    Transform,
    _build_info,
)
from jpegs import encode_jpeg, encode_png, noise

COUNT = 50  # samples of each source
EPOCHS = 3  # that are compared
THREADS = 3  # beside the main one
BAD = 17  # the record that is damaged, where one is
PATIENCE = 300  # seconds before a batch counts as hung
MEMORY = 24 << 20  # bytes by which the process may grow


class Interrupt(Exception):
    """What the main thread's timer raises."""


class Stand:
    """A source with its options, and what its batches are.

    killed: whether worker processes of it are killed. With on_error="skip", batches may then lack samples.
    forks: whether worker processes are forked. Then nothing is interrupted: if an exception comes in one of the
    functions that Python calls before and after a fork, Python loses it, and logging's lock is never released.
    """

    def __init__(self, name, source, transform=None, killed=False, forks=False, **options):
        self.name, self.source, self.transform, self.killed, self.forks = name, source, transform, killed, forks
        self.options = {"batch_size": 4, "shuffle": True, "seed": 1, **options}
        with self.loader() as loader:
            epochs = [list(outcomes(loader)) for _ in range(EPOCHS)]
        self.sizes = [len(epoch) for epoch in epochs]
        self.expected = {(e, b): found for e, epoch in enumerate(epochs) for b, found in enumerate(epoch)}
        self.places = list(self.expected)

    def loader(self, **options):
        return Loader(self.source, self.transform, timeout=PATIENCE, **self.options, **{"threads": 1, **options})

    def check(self, outcome, place):
        """Raises AssertionError if a batch, or its error, is not what belongs to this place."""
        if self.killed and isinstance(outcome, SampleError) and "worker" in str(outcome):
            return
        found, expected = fingerprint(outcome), self.expected[place]
        if self.killed and self.options.get("on_error") == "skip" and found[:2] == expected[:2]:
            expected = (*expected[:2], [row for row in expected[2] if row[0] in outcome.sample_keys])
        if found != expected:
            raise AssertionError(f"batch {place[1]} of epoch {place[0]} is not what it was: {outcome!r}")

    def position(self, state):
        """The place of the batch that is next in a state, which may be the end of an epoch."""
        epoch, batch = state["epoch"], state["batch"]
        return (epoch + 1, 0) if epoch < EPOCHS and batch == self.sizes[epoch] else (epoch, batch)

    def places_from(self, state):
        """The places from a state on."""
        return [place for place in self.places if place >= self.position(state)]

    def from_position(self, loader, places):
        """Those of the places that are still to come, by the loader's own account: from the first or second one on."""
        position = self.position(loader.state_dict())
        following = [place for place in places if place >= position]
        if len(places) - len(following) > 1:
            raise AssertionError(f"an interrupt before {places[0]} led to {position}")
        return following


def outcomes(loader):
    """The fingerprints of an epoch's batches."""
    batches = iter(loader)
    while True:
        try:
            yield fingerprint(next(batches))
        except StopIteration:
            return
        except SampleError as error:
            yield fingerprint(error)


def fingerprint(outcome):
    """What differs if any byte of a batch does, or its place; or what an error says."""
    if isinstance(outcome, SampleError):
        return str(outcome)
    rows = zip(*([zlib.crc32(np.ascontiguousarray(row)) for row in array] for array in outcome.values()))
    return outcome.epoch, outcome.number, list(zip(outcome.sample_keys, rows))


def stands(folder):
    """All that is soaked."""
    raw = write_lmdb(folder / "raw", [datum(image, i) for i, image in enumerate(images(COUNT, (3, 40, 30)))])
    pictures = [noise(60 + i, 80 - i // 2) for i in range(COUNT)]
    jpegs = [encode_jpeg(picture) for picture in pictures]
    records = [encoded(jpeg, i) for i, jpeg in enumerate(jpegs)]
    whole = write_lmdb(folder / "jpeg", records)
    tables = write_leveldb(folder / "leveldb", records, tables=True)
    records[BAD] = encoded(jpegs[BAD][:200], BAD)
    damaged = write_lmdb(folder / "damaged", records)
    files = [(folder / f"{i}{('.jpg', '.png')[i % 2]}", i) for i in range(COUNT)]
    for path, i in files:
        path.write_bytes(encode_png(pictures[i], 2, 8) if i % 2 else jpegs[i])
    crop = Transform(crop_size=24, mirror=True, mean_value=(104, 117, 123), scale=1 / 128)
    masks = ArraySource(data=np.random.RandomState(0).randint(0, 9, (COUNT, 1, 40, 30)).astype(np.uint8))
    both = Joined(LMDBSource(raw), mask=masks)
    forked = []
    if "sanitizer" not in _build_info.MODE:  # that for threads ends forked children that start threads
        failing = PythonSource(datasets.Images(COUNT, raises=BAD), workers=2, start_method="fork")
        options = {"batch_size": 10, "on_error": "skip"}
        forked = [Stand("Python processes that fail, skipped", failing, killed=True, forks=True, **options)]
    return [
        Stand("arrays", ArraySource(images(COUNT), np.arange(COUNT)), last_batch="wrap"),
        Stand("a rank of three, in windows", ArraySource(images(COUNT)), shuffle_window=7, rank=1, ranks=3, even="pad"),
        Stand("arrays by weights", ArraySource(images(COUNT)), shuffle=False, weights=range(1, COUNT + 1)),
        Stand("raw records", LMDBSource(raw), crop),
        Stand("LevelDB's records", LevelDBSource(tables), crop),
        Stand("JPEG records", LMDBSource(whole), crop),
        Stand("damaged records, which fail", LMDBSource(damaged), crop),
        Stand("damaged records, skipped", LMDBSource(damaged), crop, on_error="skip"),
        Stand("damaged records, replaced", LMDBSource(damaged), crop, on_error="replace"),
        Stand(
            "image files",
            ImageListSource(files),
            Transform(resize=40, crop_size=32, mirror=True, color="rgb", mean=(0.5,), std=(0.2,)),
        ),
        Stand("cached images", LMDBSource(whole), Transform(resize=(40, 30), crop_size=24), cache_bytes=2**20),
        Stand("images and masks", both, Transform(crop_size=20, mirror=True, fields=("data", "mask"))),
        Stand("Python processes", PythonSource(datasets.Images(COUNT), workers=2), killed=True),
        Stand("transformed", PythonSource(datasets.Images(COUNT), workers=2), Transform(crop_size=6), killed=True),
        Stand(
            "Python processes, different shapes",
            PythonSource(datasets.Scenes(COUNT), varying=("data", "mask"), padded={"boxes": 3}, workers=2),
            Transform(crop_size=6, mirror=True, fields=("data", "mask")),
            killed=True,
        ),
        Stand(
            "Python processes, joined",
            Joined(ArraySource(images(COUNT, datasets.SHAPE)), mask=PythonSource(datasets.Images(COUNT), workers=2)),
            Transform(crop_size=6, mirror=True, fields=("data", "mask")),
            killed=True,
        ),
        *forked,
        Stand("Python threads", PythonSource(datasets.Images(COUNT), workers=2, kind="thread")),
    ]


class Soak:
    """Visits of random stands, until the time is over."""

    def __init__(self, all_stands, seconds, seed):
        self.stands, self.seed = all_stands, seed
        self.end = time.monotonic() + seconds
        self.counts = collections.Counter()
        self.problems = []
        self.interruptible = False  # whether the main thread is in a call that may be interrupted

    def run(self, number):
        """Visits one stand after the other. number: of this thread; 0 is the main one."""
        chance = random.Random(f"{self.seed} {number}")
        while time.monotonic() < self.end and not self.problems:
            stand = chance.choice(self.stands)
            try:
                self.visit(stand, chance, number == 0)
                self.counts["visits"] += 1
            except Exception:
                self.problems.append(f"{stand.name}:\n{traceback.format_exc()}")

    def visit(self, stand, chance, in_main_thread):
        """Opens a loader, goes somewhere, takes batches, and leaves."""
        threads = None if isinstance(stand.source, PythonSource) else chance.choice([1, 2, 5])
        with contextlib.ExitStack() as leaving:
            prefetch = chance.randint(1, 4)
            loader = leaving.enter_context(stand.loader(threads=threads, prefetch=prefetch))
            places = stand.places
            if chance.random() < 0.7:
                places = places[chance.randrange(len(places)) :]
                epoch, batch = places[0]
                loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": batch})
            self.take(stand, loader, places[: chance.choice([0, 1, 5, 100])], prefetch, chance, in_main_thread)
            if chance.random() < 0.3:
                self.go_on_elsewhere(stand, loader.state_dict(), chance, in_main_thread)
            if chance.random() < 0.3:
                loader.report()
            if chance.random() < 0.3:
                leaving.pop_all()  # nobody closes it: it goes with its last reference

    def go_on_elsewhere(self, stand, state, chance, in_main_thread):
        """Another loader, with another number of threads, goes on where the first one was."""
        threads = None if isinstance(stand.source, PythonSource) else chance.choice([1, 3, 4])
        with stand.loader(threads=threads) as loader:
            loader.load_state_dict(state)
            self.take(stand, loader, stand.places_from(state)[:3], 1, chance, in_main_thread)
        self.counts["restored positions"] += 1

    def take(self, stand, loader, places, most_kept, chance, in_main_thread):
        """Takes the batches of these places, and compares them."""
        batches, kept = None, []
        while places:
            if stand.killed and chance.random() < 0.02:
                self.kill()
            outcome = None
            try:
                if in_main_thread:
                    self.interruptible = not stand.forks
                batches = iter(loader) if batches is None else batches
                outcome = next(batches)
            except StopIteration:
                batches = None
                continue
            except Interrupt:
                self.interruptible = False
                # Python may have thrown away what next() had returned. The loader knows.
                places = stand.from_position(loader, places)
                if batches is None:  # or what iter() had, and with it an epoch
                    loader.load_state_dict(loader.state_dict())
                continue
            except SourceError as error:  # a worker was killed again and again, before it began
                if not stand.killed or "ended before they could load a sample" not in str(error):
                    raise
                continue
            except SampleError as error:
                outcome = error
            finally:
                if in_main_thread:
                    self.interruptible = False
            place, *places = places
            stand.check(outcome, place)
            if not isinstance(outcome, SampleError) and chance.random() < 0.3:
                kept.append((outcome, place))
            if len(kept) > most_kept:
                stand.check(*kept.pop(0))  # nobody has written into it
            self.counts["batches"] += 1

    def kill(self):
        """Kills a worker process of anybody's. The sample that it was loading fails."""
        workers = [each for each in multiprocessing.active_children() if re.fullmatch(r"fastbatch-\d+", each.name)]
        if workers:
            random.choice(workers).kill()
            self.counts["killed processes"] += 1

    @contextlib.contextmanager
    def interrupts(self):
        """Raises Interrupt at random moments, where the main thread may be interrupted."""

        def interrupt(*_):
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.1))
            if self.interruptible:
                self.counts["interrupts"] += 1
                raise Interrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            yield
        finally:
            self.interruptible = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def open_files():
    """What each descriptor is: such as a path, "socket" or "pipe"."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            yield re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/self/fd/{descriptor}"))


def left():
    """What must not grow, by name."""
    with open("/proc/self/maps") as file:
        mappings = sum("memfd:" in line for line in file)
    return {
        "threads": threading.active_count() + len(native_threads()),
        "processes": len(multiprocessing.active_children()),
        "file descriptors": dict(sorted(collections.Counter(open_files()).items())),
        "shared mappings": mappings,
    }


def settled(wanted=None):
    """left(), as soon as it is as wanted, or has not changed for a second. What others close takes a moment."""
    found, since = None, time.monotonic()
    while (wanted is None or found != wanted) and time.monotonic() < since + (10 if wanted else 1):
        time.sleep(0.1)
        gc.collect()
        former, found = found, left()
        if wanted is None and found != former:
            since = time.monotonic()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what happens by chance")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastbatch-soak-") as folder:
        all_stands = stands(Path(folder))
        # In short: what the first loaders leave for the next ones, such as OpenCV's and Python's memory, is no leak.
        warm = Soak(all_stands, 6 * options.minutes, options.seed)
        soak = Soak(all_stands, 54 * options.minutes, options.seed + 1)
        before, memory = None, 0
        for part in (warm, soak):
            threads = [threading.Thread(target=part.run, args=(number,)) for number in range(1, 1 + THREADS)]
            for thread in threads:
                thread.start()
            with part.interrupts():
                part.run(0)
            for thread in threads:
                thread.join()
            after = settled(before)
            if part is warm:
                before, memory = after, anonymous_memory()
        grown = anonymous_memory() - memory
        counts = warm.counts + soak.counts
    print(f"seed {options.seed}: {', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))}")
    print(f"left before: {before}; after: {after}; memory grew by {grown / 2**20:.1f} MiB")
    problems = warm.problems + soak.problems
    if after != before:
        problems.append("something was left behind")
    if grown > MEMORY and "sanitizer" not in _build_info.MODE:  # they keep freed memory for a while
        problems.append("memory was left behind")
    print("\n".join(problems) or "nothing went wrong")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
