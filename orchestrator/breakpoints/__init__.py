"""Breakpoints at which `orchestrator chaos` holds a process, to kill it or to fail its disk.

Nothing is installed unless ORCHESTRATOR_BREAKPOINTS names the directory of a trial. Then the
methods of ``table`` are wrapped. Each one records in the history that it was reached; where its
breakpoint is armed, it also asks chaos over a socket and waits for the answer. So every fault goes
through the program's own code, and a process that is killed dies exactly there.
"""
