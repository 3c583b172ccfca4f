"""Callbacks that make the training of other frameworks resumable, one module each."""
