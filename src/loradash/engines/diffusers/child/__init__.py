"""What runs in the engine's child process; the only place that imports torch."""
