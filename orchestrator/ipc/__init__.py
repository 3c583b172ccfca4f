"""What the supervisor and the trainer share: a page of memory and a socket."""
