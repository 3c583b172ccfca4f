"""`orchestrator doctor`: what this machine and this run directory offer, and what to mend."""
