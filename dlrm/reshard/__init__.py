"""Live migration: the tables of a running job from any plan to any other, with every number of their optimizer."""
