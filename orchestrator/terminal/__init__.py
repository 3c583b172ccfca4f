"""Output for users: the terminal and the log lines."""
