"""What a training script talks to. The only part of the package that imports torch."""

from orchestrator import breakpoints
from orchestrator.training.runtime import crash_record
from orchestrator.training.session import Session
from orchestrator.training.stop import TrainingRefused, TrainingStopped

__all__ = ["Session", "TrainingRefused", "TrainingStopped"]

crash_record.listen()
breakpoints.install(breakpoints.TRAINER)
