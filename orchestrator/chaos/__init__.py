"""`orchestrator chaos`: runs a script under faults and compares it with an undisturbed run.

No part of it imports torch. What happens inside the processes is ``orchestrator.breakpoints``.
"""
