"""The life cycle of a layer: setup, batches, errors, and close.

Caffe creates the layer and calls setup() when it builds the net, then reshape() and forward() for each batch. Fastbatch
calls close() after the net is destroyed. A class derived from `Layer` declares its parameters in `schema` and the
number of its tops in `top_counts`, and implements:

check(parsed)
    Raises ValueError for parameters that are wrong for any source. setup() and the converter call it.
_open(parsed, top)
    Opens the source and gives the tops their first shapes with `_give_tops`. If it raises, the layer is closed.
_next()
    Returns the arguments of `Showing.show`: a lease, the address and shape for each top, and optionally the progress.
    Batches are taken through `self._showing.take`, so that an interrupted forward() loses none.
_shows()
    Called after the tops show the batch, for layers that log something at that point.
_end()
    Stops threads and closes files. What the tops show stays readable. May be called twice, and before _open().
"""

import math
from typing import Optional

import caffe

from fastbatch.caffe.layers.draws import Draws
from fastbatch.caffe.layers.schema import Schema
from fastbatch.caffe.layers.transform_param import check_transform
from fastbatch.caffe.runtime._blob import Showing, Top
from fastbatch.caffe.runtime.embedded import print_if_embedded
from fastbatch.caffe.runtime.layer_param import ParamLayer
from fastbatch.caffe.runtime.lifetime import registry

_INT_MAX = 2**31 - 1


class Layer(ParamLayer):
    """A data layer. Errors are Python exceptions with Caffe's words in them.

    Thread-safety: a layer belongs to the thread that runs its net; close() may be called from any thread.
    """

    schema: Schema
    top_counts: tuple[int, Optional[int]] = (2, 2)  # the least and the most; None: no limit
    conversion_note = ""  # what else the user must change after `python -m fastbatch convert` has put in this layer

    # Set by setup(); close() and the registry may need them before.
    _param = None
    _tops = ()
    _showing = None
    _type_of_tops = None
    _drawn = ()  # by the order and the transform, when the net was built

    # What Caffe calls

    def setup(self, bottom, top):
        """Read the parameters and open the source."""
        if self._param is not None:
            raise RuntimeError("setup() of this layer was called before: Caffe does so once, when it builds the net")
        registry.add(self)
        self._root = caffe.solver_rank() == 0
        try:
            self._param = self._read_layer_param(top)
            self._check_counts(len(bottom), len(top))
            self._open(self._parse(), top)
        except BaseException:
            self.close()
            print_if_embedded()
            raise

    def reshape(self, bottom, top):
        """Do nothing. Caffe calls this before every forward(), which sets the batch's shape."""

    def forward(self, bottom, top):
        """Show the next batch in the tops."""
        registry.seen(self)
        try:
            if type(top) is not self._type_of_tops:  # not called by Caffe: the net and its blobs may not exist any more
                raise RuntimeError("forward() of a layer is for Caffe to call: call that of its net")
            # A signal handler may raise between any two steps. A batch that was taken stays taken until it is shown.
            self._showing.show(*self._next())
            self._shows()
        except BaseException:
            print_if_embedded()
            raise

    def backward(self, top, propagate_down, bottom):
        """Do nothing. `caffe time` and force_backward call this."""

    # For users

    def close(self):
        """Release everything except the batch that the net shows, which stays readable.

        May be called twice. Afterwards forward() raises `fastbatch.Closed`.
        """
        self._end()
        if self._showing is not None:
            self._showing.give_up()

    # For layers, and for `python -m fastbatch convert`

    @classmethod
    def check(cls, parsed):
        """Raise ValueError for parameters that are wrong for any source. Must not open files."""
        check_transform(parsed.transform_param)

    # For layers

    def _parse(self):
        """The parameters."""
        parsed = self.schema.parse(self.param_str, self._param)
        try:
            self.check(parsed)
        except ValueError as problem:
            raise ValueError(f"{self._where(parsed)}: {problem}") from None
        return parsed

    def _where(self, parsed):
        """What the errors of check() begin with."""
        return str(self._param)

    def _open(self, parsed, top):
        raise NotImplementedError

    def _next(self):
        raise NotImplementedError

    def _shows(self):
        pass

    def _end(self):
        pass

    def _give_tops(self, top, shapes, parsed, *, where, keeps_older=False):
        """Give the tops their first shapes. There may be more shapes than tops. keeps_older: as for Showing."""
        for shape in shapes:
            self._check_size(where, shape)
        blobs = [top[number] for number in range(len(top))]  # pycaffe's container is not iterable
        self._type_of_tops = type(top)
        self._tops = [Top(blob, parsed.zero_copy) for blob in blobs]
        self._showing = Showing(self._tops, keeps_older)
        for blob, shape in zip(blobs, shapes):
            blob.reshape(*shape)

    def _stream(self, parsed):
        """The Draws of this layer, for layers with the option `seed`."""
        resume = getattr(parsed, "resume", False)
        draws = Draws(parsed.seed if parsed.HasField("seed") else None, self._log, resume)
        # Not the Draws itself, which refers to the layer: its net alone may do so, or its end is not noticed.
        self._drawn = draws.taken
        return draws

    def _check_size(self, where, shape):
        if math.prod(shape) > _INT_MAX:
            raise ValueError(
                f"{where}: batch_size {shape[0]} makes batches of shape {shape}, more values than a Blob can hold "
                "(in Caffe's words: blob size exceeds INT_MAX)"
            )

    def _check_counts(self, bottoms, tops):
        """Check what Caffe's Layer::CheckBlobCounts does not check for Python layers."""
        name, (least, most) = self.schema.layer, self.top_counts
        if bottoms:
            raise ValueError(f"{name} Layer takes 0 bottom blob(s) as input; this one has {bottoms}")
        if tops < least or (most is not None and tops > most):
            what = (
                f"{least}"
                if least == most
                else f"at least {least}"
                if most is None
                else f"at least {least} and at most {most}"
            )
            names = "" if most is None else ", data and label"
            raise ValueError(f"{name} Layer produces {what} top blob(s) as output{names}; this one has {tops}")

    def _log(self, text, all_solvers=False):
        """Write a line to Caffe's log if this Caffe has one: from the first solver only, unless `all_solvers`."""
        if (all_solvers or self._root) and hasattr(caffe, "log"):
            caffe.log(text)
