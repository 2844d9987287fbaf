"""One comparison: entrants are tuned, run beside the uncached pipeline and written down, row by row."""
