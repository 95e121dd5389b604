"""Tools for model files: merged, cleaned and told apart, one tensor at a time."""
