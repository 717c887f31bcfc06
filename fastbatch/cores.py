"""How many processor cores this process may use."""

import os

__all__ = ["usable_cores"]


def usable_cores():
    """The cores that this process may use: its affinity mask, further limited by the CPU quota of its control group. At least 1.

    A quota of one and a half cores counts as two: a thread more than the quota is throttled a little, a thread less leaves time unused.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return cores if quota is None else max(1, min(cores, quota))


def _cgroup_quota():
    """The whole number of cores that the control group allows (version 2, then 1), rounded up; None without a limit."""
    for path in _cgroup_paths():
        try:
            with open(f"{path}/cpu.max") as file:
                quota, period = file.read().split()
        except (OSError, ValueError):
            try:
                with open(f"{path}/cpu.cfs_quota_us") as first, open(f"{path}/cpu.cfs_period_us") as second:
                    quota, period = first.read().strip(), second.read().strip()
            except OSError:
                continue
        if quota not in ("max", "-1"):
            return -(-int(quota) // int(period))
    return None


def _cgroup_paths():
    """Where the limits of this process's control group may stand: its own group first, then the root that a container sees."""
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                number, controllers, group = line.rstrip("\n").split(":", 2)
                if number == "0":
                    yield "/sys/fs/cgroup" + group
                elif "cpu" in controllers.split(","):
                    yield f"/sys/fs/cgroup/{controllers}{group}"
    except (OSError, ValueError):
        pass
    yield "/sys/fs/cgroup"
    yield "/sys/fs/cgroup/cpu"
