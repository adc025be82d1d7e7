"""Benchmarks: `shardwright bench NAME`."""
