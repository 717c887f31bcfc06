"""A loader's default number of threads: affinity, and the quotas of control groups and all their parents.

The trees of control groups are files in tmp_path, laid out as the kernel does it in each version; the affinity mask is
the system's own.
"""

import os
import subprocess
import sys

import pytest

from fastbatch.cores import usable_cores

MASK = 64  # cores by affinity, wherever control groups are tested


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """A function: the usable cores of a process.

    The process has these lines in /proc/self/cgroup and these files in /sys/fs/cgroup.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MASK)))

    def count(lines, files):
        root, membership = tmp_path / "cgroup", tmp_path / "membership"
        root.mkdir()
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        membership.write_text("".join(line + "\n" for line in lines))
        return usable_cores(str(root), str(membership))

    return count


def v1(folder, quota, period=100000):
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


def test_the_affinity_mask_limits_the_cores():
    one = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from fastbatch.cores import usable_cores; "
        f"print(usable_cores())"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True).stdout == "1\n"
    )


def test_here_and_now_there_are_at_least_one_and_at_most_those_of_the_mask():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "limit, expected",
    [
        ("max 100000", MASK),
        ("100000 100000", 1),
        ("150000 100000", 2),  # rounded up
        ("10000 100000", 1),  # never 0
        ("25000 5000", 5),
        ("9900000 100000", MASK),  # more than the mask has
    ],
)
def test_version_2_own_quota(cores, limit, expected):
    assert cores(["0::/job"], {"job/cpu.max": limit}) == expected


@pytest.mark.parametrize("smallest", range(4))
def test_version_2_the_smallest_quota_of_the_group_and_its_parents_counts(cores, smallest):
    folders = ["", "kubepods.slice/", "kubepods.slice/pod7/", "kubepods.slice/pod7/container/"]
    limits = [f"{3 if i == smallest else 8}00000 100000" for i in range(4)]
    files = {folder + "cpu.max": limit for folder, limit in zip(folders, limits)}
    assert cores(["0::/kubepods.slice/pod7/container"], files) == 3


def test_version_2_a_parent_counts_where_the_own_group_has_no_limit_or_no_file(cores):
    files = {"a/cpu.max": "400000 100000", "a/b/c/cpu.max": "max 100000"}  # b has no cpu controller
    assert cores(["0::/a/b/c/d"], files) == 4


def test_quotas_of_other_groups_do_not_count(cores):
    files = {"a/cpu.max": "400000 100000", "a/other/cpu.max": "100000 100000", "b/cpu.max": "100000 100000"}
    assert cores(["0::/a/b"], files) == 4


@pytest.mark.parametrize(
    "folder, controllers", [("cpu", "cpu"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpu", "cpuacct,cpu")]
)
def test_version_1_the_smallest_quota_of_the_group_and_its_parents_counts(cores, folder, controllers):
    files = {
        **v1(folder, -1),
        **v1(f"{folder}/slurm", 800000),
        **v1(f"{folder}/slurm/job_1", 250000),
        **v1(f"{folder}/slurm/job_1/step_0", -1),
        **v1("memory/slurm/job_1", 100000),  # of a controller that is not cpu
    }
    assert cores(["5:memory:/slurm/job_1", f"4:{controllers}:/slurm/job_1/step_0", "1:name=systemd:/init"], files) == 3


def test_version_1_in_a_container_that_is_told_its_hosts_path(cores):
    """Docker without namespaces of control groups: the container's own group is the root that it sees."""
    assert cores(["4:cpu,cpuacct:/docker/0123abcd"], v1("cpu,cpuacct", 200000)) == 2


@pytest.mark.parametrize("number_of_v1, number_of_v2, expected", [(2, 6, 2), (6, 2, 2)])
def test_hybrid_both_versions_count(cores, number_of_v1, number_of_v2, expected):
    files = {**v1("cpu/user.slice", number_of_v1 * 100000), "unified/user.slice/cpu.max": f"{number_of_v2}00000 100000"}
    assert cores(["3:cpu:/user.slice/session", "0::/user.slice/session"], files) == expected


def test_a_group_outside_of_the_namespace_is_limited_by_the_root_that_can_be_seen(cores, tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")  # where "/.." of the file system of control groups would lead
    (tmp_path / "job").mkdir()
    (tmp_path / "job/cpu.max").write_text("100000 100000\n")
    files = {"cpu.max": "500000 100000", "job/cpu.max": "100000 100000"}  # our namespace's job is another one
    assert cores(["0::/../job"], files) == 5


@pytest.mark.parametrize(
    "content", ["", "all of them", "200000", "200000 0", "0 100000", "-1 100000", "2 3 4", "\N{SNOWMAN}"]
)
def test_what_is_no_quota_sets_no_limit(cores, content):
    assert cores(["0::/a/b"], {"a/b/cpu.max": content, "a/cpu.max": "400000 100000"}) == 4


def test_what_cannot_be_read_sets_no_limit(cores, tmp_path):
    unreadable = tmp_path / "cgroup/a/b/cpu.max/directory"  # root may read any file, but no directory
    assert cores(["0::/a/b"], {str(unreadable): "", "a/cpu.max": "400000 100000"}) == 4


def test_half_of_a_version_1_quota_sets_no_limit(cores):
    assert cores(["4:cpu:/a"], {"cpu/a/cpu.cfs_quota_us": "100000"}) == MASK


def test_the_roots_count_where_the_membership_cannot_be_read(tmp_path, cores):
    assert cores([], {"cpu.max": "700000 100000", **v1("cpu", 300000)}) == 3
    assert usable_cores(str(tmp_path / "cgroup"), str(tmp_path / "missing")) == 3
    assert usable_cores(str(tmp_path / "cgroup"), str(tmp_path)) == 3  # a directory
    assert usable_cores(str(tmp_path / "missing"), str(tmp_path / "missing")) == MASK


def test_lines_and_names_of_any_kind_are_survived(tmp_path, cores):
    files = {"a:b c/cpu.max": "600000 100000"}
    assert cores(["", "nonsense", "7:cpu", "0::/a:b c/gone (deleted)"], files) == 6
    (tmp_path / "membership").write_bytes(b"0::/a:b c/\xff\xfe\n")
    assert usable_cores(str(tmp_path / "cgroup"), str(tmp_path / "membership")) == 6
