"""The run of the `caffe` tool that this process is: its solver, and the snapshot that it goes on from.

Caffe tells a layer neither. Both are in the arguments of the process.
"""

import functools
import os
import re
from typing import NamedTuple

from caffe.proto import caffe_pb2
from google.protobuf import text_format
from google.protobuf.message import DecodeError

_READ = frozenset(["solver", "snapshot"])  # the flags that are read here
_BY_HAND = "take resume: true out of the layer's param_str, and the layer begins at its first batch"


class ToolRun(NamedTuple):
    """A run of `caffe train`.

    solver: the caffe_pb2.SolverParameter.
    iteration: that of the snapshot; 0 without one.
    """

    solver: object
    iteration: int

    @property
    def seeded(self):
        """Whether the solver fixes Caffe's random numbers."""
        return self.solver.random_seed >= 0

    def batches(self, test):
        """The number of batches that a data layer of the train net, or of a test net, has shown before."""
        if not test:
            return self.iteration * self.solver.iter_size
        every = self.solver.test_interval
        if self.iteration == 0 or every == 0:
            return 0
        # Caffe tests before the iterations 0, every, 2 * every, ...
        tests = -(-self.iteration // every) - (0 if self.solver.test_initialization else 1)
        if len(set(self.solver.test_iter)) > 1:
            raise ValueError(
                "resume: true cannot tell which of the solver's test nets this layer is in, and they have different "
                f"test_iter: {', '.join(map(str, self.solver.test_iter))}. Make these equal, or {_BY_HAND}"
            )
        return tests * self.solver.test_iter[0] if self.solver.test_iter else 0


@functools.cache
def tool_run():
    """The ToolRun of this process; None if it is not `caffe train`."""
    with open("/proc/self/cmdline", "rb") as file:
        return run_of([os.fsdecode(argument) for argument in file.read().split(b"\0")[1:-1]])


def run_of(arguments):
    """The ToolRun of the tool with these arguments; None if it does not train.

    Raises ValueError if they do not say themselves what the solver and the snapshot are.
    """
    if "train" not in arguments:
        return None
    for name in ("flagfile", "fromenv", "tryfromenv"):
        for place, value in flags_of(arguments, name):
            hidden = _READ if name == "flagfile" else _READ.intersection((value or "").split(","))
            # Of several values of a flag, the last one counts.
            if any(not any(later > place for later, _ in flags_of(arguments, flag)) for flag in hidden):
                raise ValueError(
                    "resume: true takes the solver and the snapshot from the arguments of `caffe train`, and cannot "
                    f"see what --{name} adds to them: write --solver and --snapshot (--snapshot= for none) behind it, "
                    f"or {_BY_HAND}"
                )
    solver, snapshot = flag_of(arguments, "solver"), flag_of(arguments, "snapshot")
    if solver is None:
        return None
    return ToolRun(read_solver(solver), iteration_of(snapshot) if snapshot else 0)


def flag_of(arguments, name):
    """The value of a flag, as gflags takes it from the arguments; None if it is missing."""
    return next((value for _, value in reversed(flags_of(arguments, name))), None)


def flags_of(arguments, name):
    """Pairs of where a flag stands in the arguments and its value there, which is None if it is missing."""
    found = []
    for number, argument in enumerate(arguments):
        key, equals, text = argument.partition("=")
        if key in (f"-{name}", f"--{name}"):
            found.append((number, text if equals else next(iter(arguments[number + 1 :]), None)))
    return found


def read_solver(path):
    """The SolverParameter in a file."""
    solver = caffe_pb2.SolverParameter()
    try:
        with open(path, "rb") as file:
            text_format.Merge(file.read(), solver)
    except (OSError, text_format.ParseError) as problem:
        raise ValueError(f"resume: true needs the solver's parameters, and {path} cannot be read: {problem}") from None
    return solver


def iteration_of(path):
    """The iteration in a snapshot of a solver. That of a snapshot in HDF5 is in its name."""
    if path.endswith(".h5"):
        named = re.search(r"_iter_(\d+)\.solverstate\.h5$", path)
        if named is None:
            raise ValueError(
                f"resume: true takes the iteration of a snapshot in HDF5 from its name, which must end as Caffe's "
                f"do, such as _iter_1000.solverstate.h5, not {path}. Rename it, or {_BY_HAND}"
            )
        return int(named[1])
    try:
        with open(path, "rb") as file:
            return caffe_pb2.SolverState.FromString(file.read()).iter
    except (OSError, DecodeError) as problem:
        raise ValueError(f"resume: true needs the snapshot's iteration, and {path} cannot be read: {problem}") from None
