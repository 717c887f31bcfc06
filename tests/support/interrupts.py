"""Interrupts at a chosen bytecode: what a signal's handler may do between any two instructions."""

import gc
import sys
import threading


class Interrupted(BaseException):
    """What the handler raises."""


def interrupted_everywhere(call):
    """Calls `call()` repeatedly, raising Interrupted at its first, second, third ... bytecode, until it completes.

    Yields the outcome of each call: Interrupted, another exception, or its result. The caller then checks that nothing
    was lost, and starts each call from the same state. Compiled code is not bytecode: there, handlers run only where it
    checks for signals.
    """
    moment, interrupted = 0, True
    while interrupted:
        moment += 1
        interrupted, outcome = interrupted_at(moment, call)
        yield outcome


def interrupted_at(moment, call):
    """(whether `call()` was interrupted at that bytecode, its outcome)."""
    steps = 0

    def step():
        nonlocal steps
        steps += 1
        if steps == moment:
            raise Interrupted

    collects = gc.isenabled()
    gc.disable()  # callbacks of the garbage collector are bytecode too, and exceptions in them reach nobody
    try:
        with (Monitored if hasattr(sys, "monitoring") else Traced)(step):
            try:
                outcome = call()
            except BaseException as error:
                outcome = error
        return steps >= moment, outcome
    finally:
        if collects:
            gc.enable()
        outcome = None  # the exception's traceback holds this frame


class Traced:
    """Calls step() before each bytecode, until it raises."""

    def __init__(self, step):
        self.step = step

    def trace(self, frame, event, _):
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.step()
        return self.trace

    def __enter__(self):
        self.former = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *exception):
        sys.settrace(self.former)


class Monitored:
    """The same for Python 3.12 and newer, which hide the bytecodes of a function on its first trace."""

    TOOL = 4  # none that sys.monitoring gives a name

    def __init__(self, step):
        self.step = step
        self.thread = threading.get_ident()  # events come from all threads

    def instruction(self, code, offset):
        if code.co_filename != __file__ and threading.get_ident() == self.thread:
            self.step()

    def __enter__(self):
        instruction = sys.monitoring.events.INSTRUCTION
        sys.monitoring.use_tool_id(self.TOOL, "interrupts")
        sys.monitoring.register_callback(self.TOOL, instruction, self.instruction)
        sys.monitoring.set_events(self.TOOL, instruction)

    def __exit__(self, *exception):
        sys.monitoring.set_events(self.TOOL, 0)
        sys.monitoring.free_tool_id(self.TOOL)
