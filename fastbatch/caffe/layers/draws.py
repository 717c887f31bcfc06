"""The random numbers that a layer takes when its net is built, from Caffe's own stream or from its option `seed`."""

import functools
import warnings

from fastbatch.caffe.runtime._blob import random_draw


class Draws:
    """The random numbers of one layer. Takes as many from Caffe's stream as Caffe's own layer does, used or not.

    seed: the layer's option `seed`, or None. It replaces the numbers drawn, so that layers with the same seed draw
    alike.
    log: called with a sentence when the seed replaces a draw.
    """

    def __init__(self, seed, log):
        self._seed = seed
        self._log = log
        self._said = False

    def skip(self):
        """Makes a draw that Caffe's own layer makes and does not use."""
        random_draw()

    def take(self):
        """The next draw, of 32 bits."""
        draw = random_draw()
        if self._seed is not None:
            if not self._said:
                self._log(
                    f"The option seed: {self._seed} takes the place of the layer's draws from Caffe's random numbers."
                )
                self._said = True
            return self._seed
        if draw is None:
            _warn_of_own_seeds()
            return 0
        return draw


@functools.cache  # once in a process is enough
def _warn_of_own_seeds():
    """Warns that random_seed has no effect on fastbatch's layers."""
    warnings.warn(
        "fastbatch cannot reach the random numbers of this Caffe, so random_seed has no effect on its layers: each "
        "takes the seed that its option seed gives, or 0; write seed: N beside data_param for another",
        RuntimeWarning,
        stacklevel=2,
    )
