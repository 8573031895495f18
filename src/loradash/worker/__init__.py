"""The RunPod Serverless worker: jobs of RunPod's queue, answered by the same use cases."""
