"""Text encoders of every family, in place: `texts` holds one object for each of a family's."""
