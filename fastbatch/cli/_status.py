"""The exit statuses of all commands."""

DONE = 0
DIFFERENT = 1  # a check was made, and failed
FAILED = 2  # also argparse's, after a wrong use
INTERRUPTED = 130  # 128 and the number of a signal, as a shell reports a program that the signal ended: SIGINT
CLOSED_PIPE = 141  # SIGPIPE
