"""Where in the data a training is, and how it gets back there."""
