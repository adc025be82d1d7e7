"""Tests of planner.replan."""
