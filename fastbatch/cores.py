"""The number of processor cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

__all__ = ["usable_cores"]

# The files of a control group's CPU quota, in versions 2 and 1. Joined, they read "quota period" in microseconds, with
# "max" or -1 for no quota.
_VERSION_2 = ("cpu.max",)
_VERSION_1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def usable_cores(control_groups: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int:
    """The number of cores that this process may use, at least 1.

    The affinity mask sets a limit. So do the CPU quotas of the process's control group and of all groups around it
    (systemd slices, jobs of a batch system, pods); the smallest limit counts.

    A quota of one and a half cores counts as two: one thread too many is throttled a little, one too few leaves time
    unused. A quota that cannot be read, as from within a namespace, sets no limit.

    control_groups, membership: where the file system of control groups (version 2, 1 or both: cgroups(7)) is mounted,
    and the file that lists the groups of this process.

    Thread-safety: any thread may call this. The affinity mask is that of the calling thread.
    """
    quotas = (_quota(group, files) for group, files in _groups(control_groups, membership))
    return max(1, min([len(os.sched_getaffinity(0)), *(quota for quota in quotas if quota is not None)]))


def _quota(group: Path, files: tuple[str, ...]) -> Optional[int]:
    """The cores that one control group allows, rounded up; None if it sets no readable limit."""
    try:
        quota, period = map(int, " ".join((group / name).read_text() for name in files).split())
    except (OSError, ValueError):
        return None
    return -(-quota // period) if quota > 0 and period > 0 else None


def _groups(control_groups: str, membership: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The folders of this process's control groups and all their parents, with the quota files in them."""
    # By folder of a hierarchy: its quota files, and the path of this process's group. Without a membership, the roots,
    # which are the container's.
    hierarchies = {"": (_VERSION_2, "/"), "unified": (_VERSION_2, "/"), "cpu": (_VERSION_1, "/")}
    for number, controllers, group in _memberships(membership):
        if number == "0":
            for name in ("", "unified"):  # systemd mounts version 2 at "unified" beside version 1
                hierarchies[name] = (_VERSION_2, group)
        elif "cpu" in controllers.split(","):
            for name in (
                "cpu",
                controllers,
            ):  # "cpu" is a link, which some systems lack, to a name such as "cpu,cpuacct"
                hierarchies[name] = (_VERSION_1, group)
    for name, (files, group) in hierarchies.items():
        parts = [part for part in group.split("/") if part]
        if ".." in parts:  # the group lies outside this namespace, of which only the root is visible
            parts = []
        # A container may see its own group as the root, yet read its host's path. Then only the root exists.
        for depth in range(len(parts), -1, -1):
            yield Path(control_groups, name, *parts[:depth]), files


def _memberships(membership: str) -> Iterator[tuple[str, str, str]]:
    """(hierarchy's number, controllers, path of the group) from each line of /proc/self/cgroup.

    Yields nothing if the file cannot be read.
    """
    try:
        lines = os.fsdecode(Path(membership).read_bytes()).split("\n")
    except OSError:
        return
    for line in lines:
        if line.count(":") >= 2:
            number, controllers, group = line.split(":", 2)
            yield number, controllers, group
