"""The built-in engine: diffusers, peft and transformers in a child process of their own.

The modules here are torch-free and belong to the parent; ``child`` is what runs in the child.
"""
