"""Work under way: what it says and is told, its state, and who runs it."""
