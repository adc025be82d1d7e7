"""Trains: the DLRM, its data, and the step that every rank repeats."""
