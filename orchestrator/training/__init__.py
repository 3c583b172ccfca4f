"""The session for training scripts. With ``integrations``, the only code that imports torch."""

from orchestrator import breakpoints
from orchestrator.training.runtime import crash_record
from orchestrator.training.session import Session
from orchestrator.training.stop import TrainingRefused, TrainingStopped

__all__ = ["Session", "TrainingRefused", "TrainingStopped"]

crash_record.install()
breakpoints.install(breakpoints.TRAINER)
