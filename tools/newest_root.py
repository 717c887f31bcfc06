"""A root with Debian's newest Pythons, compiler and C libraries: those of Debian 14, which is still in development."""

from debian_root import DebianRoot
from environment import CACHE, CHECKOUT

RELEASE = "Debian 14"
VERSIONS = [(3, 14), (3, 15)]


class NewestRoot(DebianRoot):
    """Debian 14 with one of its Pythons."""

    release, suite = RELEASE, "forky"
    script = "/usr/share/debootstrap/scripts/sid"  # an older debootstrap has no script for the suite
    packages = CHECKOUT / "tools/newest-packages.txt"
    contents, size = "Pythons and compilers", "0.9 GB and about two minutes"
    # The list of packages in testing is valid for a week, and a mirror may lag behind by more. Signatures are checked.
    apt_options = ("Acquire::Check-Valid-Until=false",)
    first_use = (
        "sh",
        "-ec",
        "; ".join("python{}.{} -c 'import ensurepip, venv'".format(*version) for version in VERSIONS),
    )

    def __init__(self, version):
        name = "python{}.{}".format(*version)
        super().__init__(f"/usr/bin/{name}", ["requirements-test.txt"], CACHE / "newest-root", f"/opt/fastbatch/{name}")
