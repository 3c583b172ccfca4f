"""A first look at a script that saves for itself: what it writes, and how it is told to resume."""
