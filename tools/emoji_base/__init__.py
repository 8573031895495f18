"""Rebuilds the small text-to-image base model ("emoji-base") that demos and tests fine-tune."""
