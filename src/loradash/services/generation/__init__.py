"""Generations: check, submit, run, and the files of prompts that they draw."""
