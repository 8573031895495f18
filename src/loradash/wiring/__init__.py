"""From settings to the concrete parts: the only package that names them.

`core` holds what every entry point needs; `server` and `worker` are the programs that last.
"""
