"""The two places where the real Caffe can be: the Python that runs this, or a root with Debian 11's own Caffe."""

import os
import subprocess
import sys
import sysconfig

from debian_root import DebianRoot
from environment import CACHE, CHECKOUT, Python, Unavailable

REQUIREMENTS = ["requirements-test.txt", "requirements-demo.txt"]
# Run in a separate process, to see whether its Python has a usable Caffe.
HAS_CAFFE = "import caffe; assert 'Python' in caffe.layer_type_list(), 'this Caffe was built without Python layers'"


class CurrentCaffe(Python):
    """The Caffe of the Python that runs this script."""

    def __init__(self):
        super().__init__(sys.executable, REQUIREMENTS, beside_caffe=True)
        # If this Python is itself a virtual environment, one made from it does not see its packages, such as Caffe.
        self.python_path = [sysconfig.get_path("purelib"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]


class CaffeRoot(DebianRoot):
    """Debian 11 with its Caffe."""

    release, suite = "Debian 11", "bullseye"
    packages = CHECKOUT / "tools/caffe-packages.txt"
    contents, size = "Caffe and compilers", "1.3 GB and a few minutes"
    first_use = ("python3", "-c", HAS_CAFFE)
    instead = "use the Dockerfile"

    def __init__(self):
        folder = os.environ.get("FASTBATCH_CAFFE_ROOT") or CACHE / "caffe-root"
        super().__init__("/usr/bin/python3", REQUIREMENTS, folder, beside_caffe=True)


def choose():
    """The Caffe to use: the current Python's if it has one, else that of the root."""
    choice = os.environ.get("FASTBATCH_CAFFE", "")
    if choice not in ("", "root", "current"):
        raise Unavailable(f"FASTBATCH_CAFFE is {choice!r}, and can be root or current")
    if choice == "root":
        return CaffeRoot()
    found = subprocess.run([sys.executable, "-c", HAS_CAFFE], capture_output=True, text=True)
    if found.returncode == 0:
        return CurrentCaffe()
    if choice == "current":
        reason = found.stderr.strip().splitlines()[-1:] or [f"it ended with status {found.returncode}"]
        raise Unavailable(f"FASTBATCH_CAFFE is current, but {sys.executable} cannot use Caffe: {reason[0]}")
    return CaffeRoot()
