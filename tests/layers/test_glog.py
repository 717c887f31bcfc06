"""How the log of a Caffe program is read."""

import pytest

pytest.importorskip("caffe._caffe")

from fastbatch.caffe.convert import glog

LOG = """\
WARNING: Logging before InitGoogleLogging() is written to STDERR
I1128 04:26:50.123456 12 net.cpp:58] Initializing net
F not from glog: layer] bottom
E1128 04:26:50.123456   12 upgrade_proto.cpp:45] Unknown parameter a[0] for layer type data
F20261128 04:26:50.123456 1234567 db_lmdb.hpp:15] Check failed: mdb_status == 0 (2 vs. 0) No such file or directory
*** Check failure stack trace: ***
"""


def test_errors():
    error = "Unknown parameter a[0] for layer type data"
    fatal = "Check failed: mdb_status == 0 (2 vs. 0) No such file or directory"
    assert glog.errors(LOG) == [error, fatal]
    assert glog.errors(LOG, "F") == [fatal]
    assert glog.errors("") == []
