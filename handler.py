"""The entry that RunPod looks for: `python -u handler.py` is `loradash worker`."""

import sys

from loradash.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["worker"]
    main()  # settles everything, then hands over to runpod.serverless.start(...)
