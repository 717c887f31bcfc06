"""Interrupts at a chosen moment: what a signal's handler may do between any two steps of Python."""

import sys


class Interrupted(BaseException):
    """What the handler raises."""


def interrupted_everywhere(call):
    """Calls `call()` again and again, and raises Interrupted at its first, second, third ... bytecode, until it comes to its end.

    Yields what became of each call: Interrupted, another exception, or its result. The caller makes sure then that nothing was lost, and
    starts each call from the same state. Compiled code is no bytecode: there, handlers run only where it asks for signals.
    """
    moment, interrupted = 0, True
    while interrupted:
        moment += 1
        interrupted, outcome = interrupted_at(moment, call)
        yield outcome


def interrupted_at(moment, call):
    """(whether `call()` was interrupted at that bytecode, what became of it)."""
    steps = 0

    def trace(frame, event, _):
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            steps += 1
            if steps == moment:
                raise Interrupted
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        try:
            outcome = call()
        except BaseException as error:
            outcome = error
        sys.settrace(former)
        return steps >= moment, outcome
    finally:
        outcome = None  # the exception's traceback holds this frame
