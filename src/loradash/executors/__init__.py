"""Executors: where waiting processes are run."""
