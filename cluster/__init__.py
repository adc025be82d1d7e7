"""Reaches the machines: the Ray session, what the nodes have, and the group of workers that trains."""
