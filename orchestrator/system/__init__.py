"""What the operating system provides: files, memory, processes, threads, signals."""
