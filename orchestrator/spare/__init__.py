"""The spare: a process that has imported the modules, from which the next trainer is forked."""
