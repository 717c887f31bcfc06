"""What a program of Caffe's says, in the log of Google's glog."""

import re

# The environment of a program whose log is to be read: all of it on standard error, else there are files in /tmp.
SETTINGS = {"GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}

# What stands before a message: its severity and the date, the time, the thread, the line of the source.
_PREFIX = re.compile(r"([IWEF])\d{4}(?:\d{4})? [\d:.]+ +\d+ [^\s\]]+\] ")


def errors(log, severities="EF"):
    """The messages of these severities in a log, without their prefixes: E is an error, F what Caffe aborts on."""
    found = []
    for line in log.splitlines():
        prefix = _PREFIX.match(line)
        if prefix and prefix[1] in severities:
            found.append(line[prefix.end() :])
    return found
