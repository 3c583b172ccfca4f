"""The state of a training: what is registered, stored, restored and compared."""
