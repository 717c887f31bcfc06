"""Copied beside each fastbatch that tools/environment.py installs, and imported by Python as it starts.

`python -c` and `python -m` look into the current folder first; in the checkout they would find fastbatch's sources,
which cannot be imported. With this, `import fastbatch` means what is installed beside this file, wherever it is said.
"""

import os
import sys
from importlib.machinery import PathFinder


class InstalledFirst:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [os.path.dirname(__file__)]) if name == "fastbatch" else None


sys.meta_path.insert(0, InstalledFirst)
