"""HTTP beside the daemon: others use the board that it owns, look at its health, and tell it what to do."""
