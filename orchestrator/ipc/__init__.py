"""Communication between supervisor, trainer and command line: shared memory and a socket."""
