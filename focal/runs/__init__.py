"""A run's folder and what is done with it: a local run to its result, and a finished model on new images."""
