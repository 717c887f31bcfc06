"""For all tests: the header says which fastbatch is tested, and on what; and which tests run in which environment."""

import os
import signal
import zlib

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # tests pass on any machine, however busy

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what is to run in the background so, and children inherit it: nothing could be interrupted then.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config):
    try:
        from fastbatch._features import info
    except ImportError as error:
        return f"fastbatch cannot be imported ({error}); build it first: python setup.py build_ext --inplace"
    return info().splitlines()


def pytest_collection_modifyitems(config, items):
    """Leaves out what `make test` runs in another environment: its part of each kind of shared test is given."""
    parts = {name: os.environ.get(f"FASTBATCH_TESTS_{name.upper()}") for name in ("once", "once_a_system")}
    ours = [item for item in items if all(is_ours(item, name, part) for name, part in parts.items() if part)]
    if len(ours) < len(items):
        config.hook.pytest_deselected(items=list(set(items).difference(ours)))
        items[:] = ours


def is_ours(item, name, part):
    """Whether a test is not shared by that name, or is in this part, such as "2/5". Part 0 has no shared tests."""
    mark = item.get_closest_marker(name)
    if mark is None:
        return True
    number, parts = map(int, part.split("/"))
    # Tests that share a fixture are a group, which stays together.
    return zlib.crc32(str(mark.kwargs.get("group", item.nodeid)).encode()) % parts + 1 == number


@pytest.fixture(params=["generic", "neon", "avx2", "avx512"])
def each_kernel(request):
    """Runs a test with every instruction set that this processor has; all others run with the best one."""
    from fastbatch._transform import kernel_name, use_kernel

    best = kernel_name()
    try:
        use_kernel(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    use_kernel(best)


@pytest.fixture
def counts_memory():
    """Skips a test that counts or limits the process's memory, where that is not the program's own."""
    from fastbatch import _build_info

    if "sanitizer" in _build_info.MODE:
        pytest.skip("sanitizers have their own memory")
