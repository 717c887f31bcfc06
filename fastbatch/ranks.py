"""Which of several cooperating processes this one is: its rank, and their number."""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple, Optional

__all__ = ["find_rank"]


class _Launcher(NamedTuple):
    """A program that starts the processes of a job, and tells each of them through the environment."""

    name: str
    rank: str  # the variable with the process's rank
    ranks: str  # the variable with the number of processes


# The innermost first: SLURM and MPI start torchrun, and SLURM starts MPI.
_LAUNCHERS = (
    _Launcher("torchrun", "RANK", "WORLD_SIZE"),
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    _Launcher("MPI", "PMI_RANK", "PMI_SIZE"),
    _Launcher("SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_INSTEAD = "say which it is: rank=..., ranks=..."


def find_rank() -> tuple[int, int]:
    """The rank of this process and the number of ranks, as its surroundings say. (0, 1) if they say nothing.

    An initialized torch.distributed is asked first, then a loaded pycaffe that trains with several solvers. Otherwise
    the environment decides: that of torchrun, Open MPI, another MPI (PMI), or SLURM.

    Raises ValueError if the environment contradicts itself. It does not if one launcher started the other: SLURM or MPI
    starts torchrun, once or once for each node, and SLURM starts MPI.

    Thread-safety: for any thread, except that pycaffe's solver is that of the calling thread.
    """
    return _of_torch() or _of_caffe() or _of_environment() or (0, 1)


def _of_torch() -> Optional[tuple[int, int]]:
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _of_caffe() -> Optional[tuple[int, int]]:
    caffe: Any = sys.modules.get("caffe")
    if not hasattr(caffe, "solver_count") or caffe.solver_count() == 1:
        return None
    return caffe.solver_rank(), caffe.solver_count()


def _of_environment() -> Optional[tuple[int, int]]:
    found = [(launcher, pair) for launcher in _LAUNCHERS for pair in [_pair(launcher)] if pair is not None]
    for outer, pair in found[1:]:
        inner, (rank, ranks) = found[0]
        if pair == (rank, ranks) or (outer.name == "SLURM" and inner.name != "torchrun"):
            continue  # mpirun's processes inherit what SLURM has told the daemons that start them
        if pair[1] == 1 or os.environ.get("GROUP_WORLD_SIZE") == str(pair[1]):
            continue  # it started torchrun, once, or once for each node
        raise ValueError(
            f"the environment contradicts itself: for {inner.name}, this is rank {rank} of {ranks} ({inner.rank}, "
            f"{inner.ranks}), and for {outer.name} it is rank {pair[0]} of {pair[1]} ({outer.rank}, {outer.ranks}); "
            + _INSTEAD
        )
    return found[0][1] if found else None


def _pair(launcher: _Launcher) -> Optional[tuple[int, int]]:
    """The rank and the number of ranks that the environment has from this launcher."""
    rank, ranks = os.environ.get(launcher.rank), os.environ.get(launcher.ranks)
    if rank is None and ranks is None:
        return None
    if launcher.name == "SLURM" and (rank is None or ranks is None):
        return None  # a batch script, which is one process, whatever number of tasks it has asked for
    if rank is None or ranks is None:
        there, missing = (launcher.ranks, launcher.rank) if rank is None else (launcher.rank, launcher.ranks)
        raise ValueError(f"the environment has {there} and no {missing}, which {launcher.name} sets too; {_INSTEAD}")
    try:
        pair = int(rank), int(ranks)
    except ValueError:
        pair = -1, 0
    if not 0 <= pair[0] < pair[1]:
        raise ValueError(
            f"the environment contradicts itself: {launcher.rank} is {rank!r} and {launcher.ranks} is {ranks!r}, and a "
            f"rank is at least 0 and less than the number of ranks; {_INSTEAD}"
        )
    return pair
