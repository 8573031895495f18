"""Processes of every kind: submit, run, list, cancel, resume."""
