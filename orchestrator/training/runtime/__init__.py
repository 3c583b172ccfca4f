"""What connects a session to its run: supervisor or none, signals, metrics, files."""
