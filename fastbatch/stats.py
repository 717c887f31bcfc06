"""`Stats`: what a loader has done, how long each step took, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Optional

from fastbatch.cores import usable_cores

__all__ = ["StageTimes", "Stats"]

# What workers do for a sample, in a report's words. The other stages are waits.
_WORK = {
    "locate": "finding samples",
    "read": "reading",
    "decode": "decoding",
    "collate": "transforming and copying",
    "write": "the source's own writing",
}

WAYS = ("index", "own", "libjpeg", "libdeflate", "libpng")
"""What decodes images: the names in `Stats.images`, in the order of the C enum fb_way."""

# The figures of Stats that grow.
_SUMS = (
    "samples",
    "errors",
    "skipped",
    "replaced",
    "elapsed",
    "batches",
    "bytes",
    "cpu",
    "waited_for_data",
    "waited_for_space",
    "cache_hits",
    "cache_misses",
)


@dataclass(frozen=True)
class StageTimes:
    """The time that all workers together have spent in one stage.

    The percentiles are those of single samples, or of single waits. Each is exact to an eighth: times are counted in
    four classes for each power of two of nanoseconds.

    The workers of a `PythonSource` get small samples several at a time. Its "write" is the wait for an answer: the
    first sample of such a group takes the time of most of them, and the others take almost none. `seconds` is right,
    and `p50` then says little about a single sample.
    """

    seconds: float
    """The sum over all workers, up to now. The stage with the most seconds is the one to make faster."""
    classes: tuple[int, ...] = field(repr=False)
    """How many times fell into each class. A wait counts when it ends, a sample when it is finished."""

    @property
    def count(self) -> int:
        """The number of samples or waits. Few long waits are a slow sample; many short ones are the normal handover."""
        return sum(self.classes)

    @property
    def p50(self) -> float:
        """Seconds that half of the times do not exceed.

        High in "decode": images are large; store them smaller. High in "read": the medium is slow.
        """
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """Seconds that nine of ten times do not exceed. Far above `p50`: samples differ much in size."""
        return self.percentile(90)

    @property
    def p99(self) -> float:
        """Seconds that 99 of 100 times do not exceed.

        Far above `p90`: a few samples are slow, or the disk is, now and then. A larger `prefetch` bridges this.
        """
        return self.percentile(99)

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the times do not exceed; 0 if there are none."""
        left = self.count * percent / 100
        for number, count in enumerate(self.classes):
            left -= count
            if count and left <= 0:
                return _middle(number) * 1e-9
        return 0.0

    def __sub__(self, earlier: StageTimes) -> StageTimes:
        return StageTimes(
            self.seconds - earlier.seconds, tuple(now - then for now, then in zip(self.classes, earlier.classes))
        )


def _middle(number: int) -> float:
    """The middle of a class in nanoseconds: native/trace.h."""
    return number if number < 4 else (4 + number % 4 + 0.5) * 2.0 ** (number // 4 - 1)


@dataclass(frozen=True)
class Stats:
    """A loader's counters, taken without stopping it: since it was created, or since an earlier `Stats`.

    `report()` says in words what they mean.
    """

    ready: int
    """Batches that are full and wait for the consumer. Mostly 0: the loader limits. Near `slots`: your loop limits."""
    held: int
    """Batches that the caller holds: the batch or one of its arrays is alive. Near `slots`: copy what you keep."""
    slots: int
    """Batches in the ring: prefetch + 1."""
    threads: int
    """Worker threads."""
    samples: int
    """Samples written into batches, prefetched ones included."""
    errors: int
    """Batches with a sample that failed, whether or not its error has been raised yet. High: see `last_error`."""
    last_error: Optional[str]
    """The message of the latest of those errors, without its batch; None if there was none."""
    skipped: int
    """Samples that failed and were left out: see `on_error` of `Loader`. High: `Loader.errors` says which to repair."""
    replaced: int
    """Samples that failed and whose place another one took. High: `Loader.errors` says which to repair."""
    elapsed: float
    """Seconds that these counters cover; until the loader was closed."""
    batches: int
    """Batches that workers have completed, prefetched ones included."""
    bytes: int
    """Bytes of these batches, as they lie in memory."""
    cpu: float
    """Seconds of processor time of the worker threads, some 10 ms behind, and of a `PythonSource` for its samples.

    Near `threads * elapsed`: all threads compute; only more cores or less work per sample help. Far below, while the
    consumer waits: they wait for a disk, for a process, or for each other, and more threads may help.
    """
    images: dict[str, int]
    """Images decoded, by what decoded them: for JPEG "index" (fastbatch's own decoder, which an index spares most of an
    image), "own" (the same without an index), and "libjpeg"; for PNG "libdeflate" and "libpng".

    Many of "own" after the first epoch: the crop shows nearly all of an image, or the index has no room: see
    `index_bytes` of the source. Many of "libjpeg": progressive or unusual files, which baseline JPEG files would
    replace at twice the speed, or a processor that is neither x86-64 nor arm64.
    """
    stages: dict[str, StageTimes]
    """The workers' time in each stage, by the names that errors have: "locate", "read", "decode", "collate" (which
    includes the transform), "write", and four waits.

    High in "wait for a free batch": your loop limits. One worker waits for it; the others wait for their turn behind
    that worker. High in "wait for its turn" alone: one worker at a time finds samples, and they queue up for it; use
    fewer threads, or arrays. High in "wait for the batch's first sample": shapes vary, and a slow sample comes first;
    use a crop, or images of one size.
    """
    waited_for_data: float
    """Seconds that the consumer has waited in next(). Near `elapsed`: the loader limits; give it more threads."""
    waited_for_space: float
    """Seconds that the workers have waited for a free batch. High: your loop limits; the loader costs it nothing."""
    cache_hits: int
    """Images that came from the cache (`cache_bytes` of `Loader`). In the first epoch there are none."""
    cache_misses: int
    """Images that were not there yet, or did not fit, and were decoded. 0 without a cache."""
    cache_used: int
    """Bytes of the cache that are in use. Near `cache_bytes`, with a low `cache_hit_rate`: more memory would help.

    close() gives the memory back; after it, this is what was in use until then.
    """
    seed: int
    """The seed of the shuffle and of the random draws: the same seed gives the same batches."""

    @property
    def samples_per_second(self) -> float:
        """Samples written, by `elapsed`. Lower than your loop needs: see `report()`."""
        return self.samples / self.elapsed if self.elapsed else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes written, by `elapsed`. Near the speed of memory (some 10 GB/s): use uint8 and a crop."""
        return self.bytes / self.elapsed if self.elapsed else 0.0

    @property
    def cache_hit_rate(self) -> float:
        """The share of images that came from the cache. 1 from the second epoch on: all of them fit."""
        images = self.cache_hits + self.cache_misses
        return self.cache_hits / images if images else 0.0

    def since(self, mark: Stats) -> Stats:
        """What was added after an earlier Stats of the same loader. What is no sum (`ready`, `held`) is that of now."""
        if not isinstance(mark, Stats):
            raise TypeError(f"since must be a Stats, as an earlier stats() of this loader returned it, not {mark!r}")
        if mark.samples > self.samples or mark.bytes > self.bytes:
            raise ValueError("since must be an earlier stats() of this loader, and this one counts more than there was")
        return replace(
            self,
            **{name: getattr(self, name) - getattr(mark, name) for name in _SUMS},
            images={name: count - mark.images[name] for name, count in self.images.items()},
            stages={name: times - mark.stages[name] for name, times in self.stages.items()},
        )

    def report(self, consumer: str = "your loop") -> str:
        """A sentence or two about what limits, and what to do about it.

        Parameters
        ----------
        consumer : str
            What to call the one who takes the batches.
        """
        if self.batches == 0 or self.elapsed <= 0:
            return "No batch was prepared."
        waited = min(self.waited_for_data / self.elapsed, 1)
        rate = f"{self.samples_per_second:.3g} samples/s in {self.elapsed:.3g} s"
        if waited < 0.1:
            return (
                f"{consumer[0].upper()}{consumer[1:]} limits: it waited for batches for {waited:.0%} of the time "
                f"({rate}), and the workers waited for a free batch for {self._share('wait for a free batch'):.0%} of "
                "theirs. A faster loader would change little."
            )
        return (
            f"The loader limits: {consumer} waited for batches for {waited:.0%} of the time ({rate}). "
            + self._limit(consumer)
            + self._said_of_cache()
        )

    def _share(self, *stages: str) -> float:
        """The share of the workers' time in these stages."""
        return sum(self.stages[name].seconds for name in stages) / (self.threads * self.elapsed)

    def _said_of_cache(self) -> str:
        """How many images had to be decoded although there is a cache."""
        if self.cache_misses == 0:
            return ""
        return (
            f" The cache had {self.cache_hit_rate:.0%} of the images. It holds {self.cache_used / 1e9:.3g} GB: if that "
            "is near cache_bytes, more will help; otherwise, images that are not damaged are there in the next epoch."
        )

    def _limit(self, consumer: str) -> str:
        """What limits a loader that is too slow."""
        # While one worker waits for a free batch, the others wait behind it.
        behind = (self.threads - 1) * self._share("wait for a free batch")
        turn = max(0.0, self._share("wait for its turn") - behind)
        if turn > 0.3 and turn > self._share("read", "decode", "collate", "write"):
            return (
                f"The workers waited for their turn to find samples for {turn:.0%} of their time, which they do one at "
                "a time: more threads won't help."
            )
        first = self._share("wait for the batch's first sample")
        if first > 0.3:
            return (
                f"The workers waited for the first sample of a batch for {first:.0%} of their time, because it decides "
                "the shape: crop, or use images of one size."
            )
        work = sum(self.stages[name].seconds for name in _WORK)
        top = max(_WORK, key=lambda name: self.stages[name].seconds)
        share = self.stages[top].seconds / work if work else 0.0
        cores = usable_cores()
        busy = min(cores, self.cpu / self.elapsed)  # what was begun before the mark counts when it ends
        said = f"{_WORK[top][0].upper()}{_WORK[top][1:]} takes {share:.0%} of the workers' working time"
        if busy > 0.8 * min(self.threads, cores):
            if self.threads < cores:
                return (
                    f"{said}, and all {self.threads} workers compute: threads={cores} uses all cores, or "
                    f"workers={cores} of a PythonSource."
                )
            return f"{said} on {busy:.1f} busy cores of {cores}: more threads won't help; less work per sample will."
        if self._share("wait for a free batch") > 0.3:
            return f"{said}, but they often wait for a free batch: {consumer} takes several at once. Use more prefetch."
        said += f", but they use only {busy:.1f} of {cores} cores: "
        if top == "write":
            return said + (
                "they wait for the source. More processes of a PythonSource (workers=), or more threads= for a "
                "CallbackSource, may help."
            )
        if top in ("read", "locate"):
            return said + (
                "they wait for the disk or the network. More threads= (of a PythonSource, workers=) will help, or a "
                "faster medium."
            )
        return said + "other threads or programs of this machine use the rest."
