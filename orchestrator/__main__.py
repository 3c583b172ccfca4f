"""``python -m orchestrator``, where the console script is not on PATH."""

from orchestrator.cli import main

main()
