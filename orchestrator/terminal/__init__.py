"""What people see: the terminal, the log lines."""
