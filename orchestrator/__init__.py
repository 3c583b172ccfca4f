"""A resumable training orchestrator: stop or kill a PyTorch run, lose nothing or almost nothing.

The command line is ``orchestrator`` (or ``python -m orchestrator``). A training script imports
``orchestrator.training``, the only part that imports torch.
"""

__version__ = "0.1.0"
