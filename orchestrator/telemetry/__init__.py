"""Information that a run gives to others: its status, its events, its experiment trackers."""
