"""systemd: notifications to the service manager, and unit files."""
