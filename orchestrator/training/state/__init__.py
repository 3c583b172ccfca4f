"""The state of a training run: registered, captured, restored and compared."""
