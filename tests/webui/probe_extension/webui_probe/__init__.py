"""What the tests ask of the WebUI from inside: runs, faults, snapshots and leftovers."""
