"""The "LoRA Dashboard" protocol: requests in, use cases called, replies out."""
