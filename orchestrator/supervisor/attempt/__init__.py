"""One attempt: its process, its output, its memory, what is left of it."""
