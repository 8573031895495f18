"""What helps in developing: an emulator of RunPod Serverless' queue. Nothing here serves users."""
