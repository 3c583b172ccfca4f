"""The spare: a process with the imports done, from which the next trainer is forked."""
