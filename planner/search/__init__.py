"""Finds plans: strategies, the step they share, and a proven lower bound."""
