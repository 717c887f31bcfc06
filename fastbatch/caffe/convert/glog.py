"""Reads the log that a Caffe program writes with Google's glog."""

import re

# The environment of a program whose log is read: everything goes to standard error, not to files in /tmp.
SETTINGS = {"GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}

# The prefix of a message: severity and date, time, thread, and source line.
_PREFIX = re.compile(r"([IWEF])\d{4}(?:\d{4})? [\d:.]+ +\d+ [^\s\]]+\] ")


def errors(log, severities="EF"):
    """The messages of these severities in a log, without their prefixes. E: an error; F: fatal, Caffe aborts."""
    found = []
    for line in log.splitlines():
        prefix = _PREFIX.match(line)
        if prefix and prefix[1] in severities:
            found.append(line[prefix.end() :])
    return found
