"""Copied beside each fastbatch that tools/environment.py installs, and imported by Python at startup.

`python -c` and `python -m` search the current folder first. In the checkout they would find fastbatch's sources, which
cannot be imported. With this file, `import fastbatch` always finds the package installed beside it.
"""

import os
import sys
from importlib.machinery import PathFinder


class InstalledFirst:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [os.path.dirname(__file__)]) if name == "fastbatch" else None


sys.meta_path.insert(0, InstalledFirst)
