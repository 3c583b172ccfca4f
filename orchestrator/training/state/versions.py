"""The versions that a manifest records."""

import platform

import torch

from orchestrator import __version__

VERSIONS = {
    "python": platform.python_version(),
    "torch": str(torch.__version__),
    "orchestrator": __version__,
}
