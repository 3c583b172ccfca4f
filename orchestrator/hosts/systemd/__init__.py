"""What systemd is told of a run, and the units that start one."""
