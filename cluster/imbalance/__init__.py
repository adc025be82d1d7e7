"""Tells from what ranks measure of every step whether the fleet is out of balance, and why."""
