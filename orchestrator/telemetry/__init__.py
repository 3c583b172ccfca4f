"""Information that a run gives to others: its status, events, metrics and experiment trackers."""
