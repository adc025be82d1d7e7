"""A learned strategy: one small network that places any tables on any devices, and what trains it."""
