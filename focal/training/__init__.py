"""Lightning modules: feature extraction, and what trains lower segments and baselines."""
