"""The exit statuses of all commands."""

DONE = 0
DIFFERENT = 1  # a check failed
FAILED = 2  # also argparse's, after a usage error
INTERRUPTED = 130  # 128 plus the signal's number (SIGINT), as a shell reports a program that a signal ended
CLOSED_PIPE = 141  # SIGPIPE
