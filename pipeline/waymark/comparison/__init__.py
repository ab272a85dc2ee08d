"""Two or more recorded runs: what differs, and whether a rerun came to the same bits."""
