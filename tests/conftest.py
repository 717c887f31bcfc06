"""For all tests: the header says which fastbatch is tested, and on what."""

import signal

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
