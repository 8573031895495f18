"""Trainings while their workers are killed all the time, and what must hold afterwards."""
