"""The engine against the dense oracles, through its public names only."""
