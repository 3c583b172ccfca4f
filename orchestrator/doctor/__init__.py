"""`orchestrator doctor`: checks a machine and a run directory, and says what to fix."""
