"""Images per second of Loader for 1, 2, 4, 8, ... threads, up to the number of cores. Needs only NumPy and fastbatch.

    python bench/scaling.py [--json FILE] [--lmdb DIR] [--threads 1,2,4] ...      (--help shows all options)

Raw uint8 images of 3 x 256 x 256, random crop 227, mirror, three mean values: from arrays in memory, and from an LMDB
database of such Datum records, which is made, or named with --lmdb. Also images of MNIST's size, 1 x 28 x 28, from
arrays, with a scale and 16 times as many in a batch: for these, the sequencer's lock is most of the work.

In every round, each number of threads has its turn, so all run under the same conditions. The speed-up is the ratio of
the rate to that of the fewest threads in the same round, as the median over the rounds. The efficiency is the speed-up
per thread.
"""

import argparse
import json
import statistics
import time

import numpy

from facts import facts, load_average
from fastbatch import ArraySource, LMDBSource, Loader, Transform
from fastbatch.cores import usable_cores
from interleave import QUICK, number, percentile


class Side:
    """A Loader with its threads; run() returns its images per second for a while."""

    def __init__(self, source, transform, threads, batch_size):
        self.loader = Loader(source, transform, batch_size=batch_size, threads=threads, prefetch=4)
        self.batches = self.endless()
        self.batch_size = batch_size

    def endless(self):
        while True:
            yield from self.loader

    def run(self, seconds):
        for _ in range(6):  # the batches that were ready before
            next(self.batches)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            count += len(next(self.batches))
        return count / (time.perf_counter() - begin)


def measure(source, transform, batch_size, options):
    """{threads: [images per second, for each round]}"""
    rates = {threads: [] for threads in options.threads}
    for _ in range(options.rounds):
        for threads in options.threads:
            side = Side(source, transform, threads, batch_size)
            rates[threads].append(side.run(options.seconds))
            side.loader.close()
    return rates


def summary(rates):
    """The figures of one source, one dict for each number of threads."""
    fewest = min(rates)
    rows = []
    for threads, values in rates.items():
        speedup = [fast / slow for fast, slow in zip(values, rates[fewest])]
        rows.append(
            {
                "threads": threads,
                "images_per_second": statistics.median(values),
                "p10": percentile(values, 10),
                "p90": percentile(values, 90),
                "speedup": statistics.median(speedup),
                "efficiency": statistics.median(speedup) * fewest / threads,
                "rates": values,
            }
        )
    return rows


def powers_up_to(most):
    """1, 2, 4, ... below `most`, and `most` itself."""
    powers = [1]
    while 2 * powers[-1] < most:
        powers.append(2 * powers[-1])
    return powers + [most] * (most > 1)


def numbers(text):
    """[1, 2, 4] from "1,2,4"."""
    return [int(each) for each in text.split(",")]


def make_database(options):
    """The path of a database: the one that was named, or the benchmarks' own."""
    if options.lmdb:
        return options.lmdb
    from database import image_database

    return image_database(options.images)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures and the machine's facts to this file")
    parser.add_argument("--lmdb", help="a database of uint8 Datum records 3 x 256 x 256")
    parser.add_argument("--threads", type=numbers, default=powers_up_to(usable_cores()), help="how many, as in 1,2,4")
    parser.add_argument("--rounds", type=int, default=2 if QUICK else 5)
    parser.add_argument("--seconds", type=float, default=0.05 if QUICK else 2, help="of each turn")
    parser.add_argument(
        "--images",
        type=int,
        default=320 if QUICK else 6400,
        help="6400 have 1.3 GB, once as an array and once in the database",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()

    array = numpy.random.RandomState(0).bytes(options.images * 3 * 256 * 256)
    array = numpy.frombuffer(array, dtype=numpy.uint8).reshape(options.images, 3, 256, 256)
    small = array.reshape(-1)[: options.images * 10 * 784].reshape(-1, 1, 28, 28)
    crop, scale = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123)), Transform(scale=1 / 256)
    sides = {
        "arrays": (ArraySource(array, numpy.arange(len(array))), crop, options.batch_size),
        "small": (ArraySource(small, numpy.arange(len(small))), scale, 16 * options.batch_size),
    }
    sides["lmdb"] = LMDBSource(make_database(options)), crop, options.batch_size

    result = {"machine": facts(), "options": vars(options), "sources": {}}
    for name, side in sides.items():
        rows = result["sources"][name] = summary(measure(*side, options))
        print(f"{name:8} threads      images/s      p10 .. p90             speed-up  efficiency")
        for row in rows:
            spread = f"{number(row['p10']):>9} .. {number(row['p90']):<9}"
            print(
                f"{'':8} {row['threads']:7} {number(row['images_per_second']):>13}   {spread}"
                f"   {row['speedup']:10.2f}  {100 * row['efficiency']:8.0f} %"
            )
    result["load_average_after"] = load_average()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
