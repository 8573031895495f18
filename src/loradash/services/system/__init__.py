"""The system itself: health, doctor, sweeping, copying of stores, the demo."""
