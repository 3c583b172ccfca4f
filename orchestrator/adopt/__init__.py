"""Adopt mode: the checkpoints that a script saves for itself are scanned, judged and sealed."""
