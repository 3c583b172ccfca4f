"""The position in the data, and how a resumed run returns to it."""
