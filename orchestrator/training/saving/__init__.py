"""From the live state to a snapshot in memory or a file on disk."""
