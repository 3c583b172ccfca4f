"""What a run tells the outside: its status, its events, its experiment trackers."""
