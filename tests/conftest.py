"""For all tests: the header says which fastbatch is tested, and on what."""


def pytest_report_header(config):
    try:
        from fastbatch._features import info
    except ImportError as error:
        return f"fastbatch cannot be imported ({error}); build it first: python setup.py build_ext --inplace"
    return info().splitlines()
