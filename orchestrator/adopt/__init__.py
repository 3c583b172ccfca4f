"""Checkpoints that a script saves for itself: their names, their files, whether they are whole."""
