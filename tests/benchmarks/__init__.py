"""`make bench`: the figures of docs/explanation/performance.md, each next to its floor."""
