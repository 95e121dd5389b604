"""The Dataset tab: layout, its commands, and its panels as HTML."""
