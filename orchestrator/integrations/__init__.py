"""What fits frameworks' own trainers into a run; each module is imported only by its users."""
