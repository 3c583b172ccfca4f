"""Services of the operating system: files, memory, processes, threads, signals."""
