"""The training page: layout, what its buttons do, and a run as HTML."""
