"""What loradash talks about: configs, requests, events, datasets, adapters. Without I/O."""
