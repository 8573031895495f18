"""The scripted engine: real processes, files and events, and nothing that is learned or drawn.

For tests, and for trying a server without torch. Its child starts in a fraction of a second, works
as fast or slowly as it is told, and can be told to fail; docs/engines.md lists how. Everything that
it leaves says that it is scripted.
"""
