"""Bring pip into a virtual environment where Python lacks the module ensurepip.

Debian and Ubuntu leave it out of Python unless the package python3-venv is installed, which takes
an administrator. This takes none. Usage: VENV/bin/python install_pip.py
"""

import hashlib
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

# `pip install --dry-run --ignore-installed --report - pip` tells the newest one's.
WHEEL = "pip-26.3-py3-none-any.whl"
FOLDER = "packages/07/25/ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
URL = f"https://files.pythonhosted.org/{FOLDER}/{WHEEL}"
TIMEOUT_S = 60


def main() -> None:
    """Fetch pip's wheel, compare its hash, and let it install itself."""
    print(f"Python has no ensurepip: fetching {WHEEL}", flush=True)
    try:
        wheel = fetched(URL)
    except OSError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"{URL}: {error}\nCheck the network, or install the package python{version}-venv:\n"
            f"    sudo apt-get install python{version}-venv"
        )
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        sys.exit(f"{URL}: not the file that was expected")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WHEEL
        path.write_bytes(wheel)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(path)],
            env={**os.environ, "PYTHONPATH": str(path)},
            check=True,
        )


def fetched(url: str) -> bytes:
    """Return what is at an address; without certificates too, since its hash is compared."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=unverified) as reply:
        content: bytes = reply.read()
    return content


if __name__ == "__main__":
    main()
