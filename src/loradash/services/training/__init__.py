"""Trainings: check, submit, run, extend, and start from an adapter."""
