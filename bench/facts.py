"""What a figure depends on: the machine, and the versions in use."""

import os
import platform
import sys
from pathlib import Path

import numpy

import fastbatch
from fastbatch._transform import kernel_name
from fastbatch.cores import usable_cores


def facts():
    """Facts of this machine and this process's software, as a dict for JSON."""
    return {
        "cpu": _cpu(),
        "usable_cores": usable_cores(),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 10**6,
        "system": f"{platform.system()} {platform.release()}",
        "huge_pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "fastbatch": fastbatch.__version__,
        "kernel": kernel_name(),
        "caffe": getattr(sys.modules.get("caffe"), "__version__", None),
        "load_average": load_average(),
    }


def load_average():
    """The load average of the last minute; above about 1, other processes share the machine."""
    return round(os.getloadavg()[0], 2)


def _cpu():
    """The processor's name if /proc/cpuinfo has one; on arm64, the kernel's name of the architecture."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _first_line(path):
    try:
        return Path(path).read_text().splitlines()[0]
    except OSError:
        return "unknown"
