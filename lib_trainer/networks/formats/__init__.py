"""Files: state dicts in and out."""
