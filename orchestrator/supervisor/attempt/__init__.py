"""One attempt: its launch, process, output, memory and exit record."""
