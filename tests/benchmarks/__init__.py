"""`make bench`: the figures of docs/performance.md, each with its floor from the same run."""
