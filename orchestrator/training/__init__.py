"""The session for training scripts. With ``integrations``, the only code that imports torch."""

import torch

from orchestrator.breakpoints.install import install
from orchestrator.breakpoints.table import TRAINER
from orchestrator.system.requirements import check_torch
from orchestrator.training.exits import refusing
from orchestrator.training.runtime import crash_record
from orchestrator.training.stop import TrainingRefused, TrainingStopped

with refusing():
    check_torch(torch.__version__)

from orchestrator.training.session import Session  # which an old torch cannot import

__all__ = ["Session", "TrainingRefused", "TrainingStopped"]

crash_record.install()
install(TRAINER)
