"""Trust in a query: made again from the run folder, explained, and shaken by what should not matter."""
