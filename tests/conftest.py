"""For all tests: the header says which fastbatch is tested, and on what."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what is to run in the background so, and children inherit it: nothing could be interrupted then.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config):
    try:
        from fastbatch._features import info
    except ImportError as error:
        return f"fastbatch cannot be imported ({error}); build it first: python setup.py build_ext --inplace"
    return info().splitlines()
