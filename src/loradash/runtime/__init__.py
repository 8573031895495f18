"""Running engines: the workspace, child processes, one process from its start to its end."""
