"""Faults planted on purpose into a running job, to see what they do and whether they are found."""
