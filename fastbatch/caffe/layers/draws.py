"""The random numbers that a layer takes when its net is built, from Caffe's own stream or from its option `seed`."""

import functools
import warnings

from fastbatch.caffe.runtime._blob import random_draw
from fastbatch.caffe.runtime.embedded import EMBEDDED
from fastbatch.caffe.runtime.tool_run import tool_run


class Draws:
    """The random numbers of one layer. Takes as many from Caffe's stream as Caffe's own layer does, used or not.

    seed: the layer's option `seed`, or None. It replaces each number drawn, so layers with the same seed draw alike.
    log: called with a sentence when the seed first replaces a draw.
    resume: the layer's option. take() raises ValueError if another run would draw other numbers.
    of_loader: whether the seed is that of a Loader, which the layer takes over.
    taken: the numbers that take() has returned.
    """

    def __init__(self, seed, log, resume=False, of_loader=False):
        self._seed = seed
        self._log = log
        self._said = False
        self._resume = resume
        self._of_loader = of_loader
        self.taken = []

    def skip(self):
        """Make a draw that Caffe's own layer makes and does not use."""
        random_draw()

    def take(self):
        """Return the next draw, a 32-bit integer."""
        self.taken.append(self._take())
        return self.taken[-1]

    def _take(self):
        draw = random_draw()
        if self._seed is not None:
            if not self._said:
                given = "The Loader's seed:" if self._of_loader else "The option seed:"
                self._log(f"{given} {self._seed} takes the place of the layer's draws from Caffe's random numbers.")
                self._said = True
            return self._seed
        if self._resume:
            self.check_fixed()
        if draw is None:
            _warn_of_own_seeds()
            return 0
        return draw

    def check_fixed(self):
        """Raise ValueError if another run of the `caffe` tool would draw other numbers."""
        if self._seed is None and EMBEDDED and tool_run() is not None and not tool_run().seeded:
            seed = "give the Loader a seed" if self._of_loader else "seed into the layer's param_str"
            raise ValueError(
                "resume: true needs random numbers that do not change from run to run: write random_seed into the "
                f"solver, or {seed}"
            )


@functools.cache  # warn once per process
def _warn_of_own_seeds():
    """Warn that random_seed has no effect on fastbatch's layers."""
    warnings.warn(
        "fastbatch cannot access the random numbers of this Caffe, so random_seed has no effect on its layers. Each "
        "layer uses its option seed, or 0; to choose another, write seed: N at the top level of the layer's param_str",
        RuntimeWarning,
        stacklevel=2,
    )
