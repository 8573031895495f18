"""Ask other programs' own code how much of our adapter files it uses, and whether it is the same.

    python tools/check_loaders --sd-scripts DIR --comfyui DIR --a1111 DIR

takes checkouts of kohya-ss/sd-scripts, comfyanonymous/ComfyUI and AUTOMATIC1111/
stable-diffusion-webui, which must lie outside this repository. Nothing of them is copied: their
modules that load LoRAs are imported from there, with empty stand-ins for what these import besides.
Each gets the same small base models (of the shapes of Stable Diffusion 1 and 2, random weights) and
the same adapters; what it adds to each weight is compared with what the trained model adds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from made_files import CASES, FORMATS, make_files

PROGRAMS = ("diffusers", "sd-scripts", "ComfyUI", "A1111")
TOLERANCE = 1e-5
NOT_READ = {("sd-scripts", "diffusers"), ("A1111", "diffusers")}
"""Programs and formats of which docs/adapters.md says that no key is used."""


def main() -> int:
    """Print a table; return 1 if a program uses another part of a file than the docs say."""
    parser = argparse.ArgumentParser(prog="check_loaders")
    for name in PROGRAMS[1:]:
        parser.add_argument(f"--{name.lower()}", type=Path, required=True, metavar="CHECKOUT")
    checkouts = vars(parser.parse_args())
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        print("| file | " + " | ".join(PROGRAMS) + " |\n|" + " --- |" * (len(PROGRAMS) + 1))
        found = {
            program: _ask(program, Path(folder), checkouts[program.lower().replace("-", "_")]
                          if program != "diffusers" else None, checkouts["comfyui"])
            for program in PROGRAMS
        }  # fmt: skip
        for base in ("sd1", "sd2"):
            for save_format in FORMATS:
                for case in CASES:
                    name = f"{base}-{save_format}-{case}"
                    cells = []
                    for program in PROGRAMS:
                        text, good = _judged(found[program][name], (program, save_format))
                        wrong += not good
                        cells.append(text)
                    print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"{wrong} unexpected")
    return int(wrong > 0)


def _ask(program: str, folder: Path, checkout: Path | None, comfyui: Path) -> dict[str, dict]:
    """Run a program's loader in a process of its own: their modules have the same names."""
    script = Path(__file__).with_name("one_program.py")
    arguments = [program, str(folder), str(checkout or ""), str(comfyui)]
    result = subprocess.run(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def _judged(answer: dict, place: tuple[str, str]) -> tuple[str, bool]:
    used, total, layers = answer["used"], answer["total"], answer["layers"]
    if place in NOT_READ:
        return f"{used}/{total}", used == 0
    same = layers == answer["expected_layers"] and answer["error"] <= TOLERANCE
    text = f"{used}/{total}, {answer['error']:.0e}" if layers else f"{used}/{total}"
    return text, used == total and same


if __name__ == "__main__":
    sys.exit(main())
