"""Adapters: find, describe, rename, delete, and those that other programs have made."""
