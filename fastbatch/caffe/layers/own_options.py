"""The options of a layer of the user's own: those in its param_str, or what a `Loader` was told."""

import inspect

from fastbatch.caffe.layers import forks
from fastbatch.caffe.layers.params import error_policy
from fastbatch.loader import (
    Loader,
    check_cache_folder,
    check_count,
    check_flag,
    check_seed,
    check_shuffle,
    check_shuffle_window,
)
from fastbatch.transforms import Transform


class Options:
    """The options, checked, as the attributes that the layer reads. Raises ValueError or TypeError.

    phase: the net's, "TRAIN" or "TEST". transform: a dict of a Transform's parameters, without phase; or a Transform.
    """

    zero_copy = True
    weights = None  # a Loader's, as a Weighted

    def __init__(
        self,
        phase,
        *,
        batch_size=None,
        shuffle=False,
        shuffle_window=None,
        seed=None,
        threads=None,
        prefetch=4,
        on_error="raise",
        error_budget=None,
        cache_bytes=None,
        cache_folder=None,
        resume=False,
        transform=None,
    ):
        self.batch_size = None if batch_size is None else check_count("batch_size", batch_size, 2**31 - 1)
        self.shuffle = check_shuffle(shuffle)
        self.shuffle_window = check_shuffle_window(shuffle_window, self.shuffle)
        self.seed = None if seed is None else check_seed(seed)
        self.threads = None if threads is None else check_count("threads", threads, 4096)
        self.prefetch = check_count("prefetch", prefetch, 2**16)
        self.error_policy = error_policy(on_error, error_budget)
        self.cache_bytes = None if cache_bytes is None else check_count("cache_bytes", cache_bytes, 2**62)
        self.cache_folder = check_cache_folder(cache_folder, self.cache_bytes)
        self.resume = check_flag("resume", resume)
        self.transform = transform
        if transform is not None and not isinstance(transform, Transform):
            if not isinstance(transform, dict):
                raise TypeError(f"transform must be a dict of a Transform's parameters, not {transform!r}")
            if "phase" in transform:
                raise ValueError("transform cannot have a phase, which is the net's own: leave it out")
            self.transform = Transform(**forks.translated(transform), phase=phase)


OPTIONS = tuple(inspect.signature(Options).parameters)[1:]  # without phase

_RANK = "A net's rank is Caffe's own: in phase TRAIN, each solver has its share."
ABSENT = {
    "even": _RANK,
    "last_batch": "The batches of a net have a fixed size, and go on into the next epoch.",
    "rank": _RANK,
    "ranks": _RANK,
    "timeout": "forward() waits as long as it takes.",
}
"""Parameters of a Loader that a layer does not have, and why."""

_ACCEPTED = {"even": (None,), "last_batch": ("partial", "wrap"), "ranks": (1,), "timeout": (None,)}
_IN_ONE_PHASE = ("crop_size", "random_resized_crop", "brightness", "contrast", "saturation")


def taken_over(loader, beside, phase):
    """The source of a Loader that source() returned, and what the Loader was told, as Options. Closes the Loader.

    beside: the options in param_str, a dict. phase: the net's. Raises ValueError or TypeError for what a layer cannot
    do, and for what both say.
    """
    if loader.closed:
        raise ValueError(
            "source() returned a Loader that is closed, as a layer closes the one that it gets: make a new one in "
            "source()"
        )
    position = loader.state_dict()
    if position["epoch"] or position["batch"]:
        raise ValueError(
            f"source() returned a Loader that is at batch {position['batch']} of epoch {position['epoch']}, and a "
            "layer begins at the first one: make a new one in source()"
        )
    source = loader.source
    loader.close()  # first: its threads and its cache are not to be there beside the layer's
    if type(loader) is not Loader:
        kind = type(loader).__name__
        raise TypeError(
            f"source() returned a {kind}, and the layer's batches would have nothing of what a {kind} makes of them: "
            "return a fastbatch.Loader with the same parameters"
        )
    for name, accepted in _ACCEPTED.items():
        value = getattr(loader, name)
        if value not in accepted:
            given = "rank and ranks" if name == "ranks" else name
            raise ValueError(
                f"source() returned a Loader with {name}={value!r}. {ABSENT[name]} Make the Loader without {given}"
            )
    told = {name: getattr(loader, name) for name in OPTIONS if name != "resume"}
    if loader._seed_drawn:
        told["seed"] = None
    for name, value in beside.items():
        if name != "resume":
            raise ValueError(
                f"its param_str has {name}={value!r}, and source() returned a Loader, which has {name}={told[name]!r}. "
                f"Beside a Loader, only resume and the parameters of source() belong there: say {name} to the Loader"
            )
    options = Options(phase, **told, resume=beside.get("resume", False))
    options.weights = loader._weights
    _check_phase(options.transform, phase)
    return source, options


def _check_phase(transform, phase):
    """Reject a Transform that crops or changes colors as in the other phase."""
    if transform is None or transform.phase == phase:
        return
    usual = Transform()
    for name in _IN_ONE_PHASE:
        if getattr(transform, name) != getattr(usual, name):
            raise ValueError(
                f"source() returned a Loader with a transform whose phase is {transform.phase!r}, and the net's is "
                f"{phase!r}, in which {name} does something else: say Transform(..., phase=self.phase)"
            )
