"""The places where a supervisor lives, and what each of them wants to be told."""
