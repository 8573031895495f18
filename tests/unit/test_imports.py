import subprocess
import sys


def test_the_core_starts_without_the_torch_stack():
    program = (
        "import sys, loradash.wiring.core, loradash.services.system.doctor\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
