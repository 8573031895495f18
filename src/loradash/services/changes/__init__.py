"""Live data: one hub polls the registry for changes and wakes everybody who listens."""
