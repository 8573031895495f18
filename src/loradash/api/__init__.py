"""The HTTP server: RunPod's job API over the same services as every other entry point."""
