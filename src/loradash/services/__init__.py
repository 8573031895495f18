"""The use cases: what the command line calls, and later the server and the worker."""
