"""The registry: the records of all processes, and who owns which."""
