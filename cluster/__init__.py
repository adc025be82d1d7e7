"""Reaches the machines: the Ray session, what the nodes have, how fast it is, and the workers that train."""
