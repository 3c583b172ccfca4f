"""Ending an attempt: the stop ladder, hangs, stacks."""
