"""The report of a run, or of several side by side: one page of what its folder holds."""
