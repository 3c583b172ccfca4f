"""`orchestrator chaos`: runs a script under faults and compares it with an undisturbed run.

The package does not import torch. ``orchestrator.breakpoints`` is its part inside the processes.
"""
