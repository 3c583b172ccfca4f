"""How this program is started again, by the same Python."""

# -P: a folder named orchestrator in the working directory must not be run in place of this package.
MODULE_WORDS = ("-P", "-m", "orchestrator")
