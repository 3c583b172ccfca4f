"""`make bench`: the figures of docs/explanation/performance.md, each with a floor of its run."""
