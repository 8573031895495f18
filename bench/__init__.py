"""Benchmarks: each module answers one question, as a ratio to a peer measured in the same run."""
