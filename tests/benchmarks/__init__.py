"""`make bench`: the figures of docs/explanation/performance.md, each with its floor from the same run."""
