"""A run's folder and what is done with it: a local run from its configuration to its result, and a finished model on new images."""
