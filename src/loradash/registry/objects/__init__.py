"""The registry whose records are objects: for workers that have a bucket and no database."""

from loradash.registry.objects.registry import ObjectRegistry

__all__ = ["ObjectRegistry"]
