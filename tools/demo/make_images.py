"""Makes the demo's images: ten pictures of a logo, and regularisation images by the base model.

Run once when the logo or the embedded base model changes; the result is committed, so the demo
itself starts with training at once:

    python tools/demo/make_images.py src/loradash/data/demo
"""

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 64
_SCALE = 4  # drawn larger and scaled down, for smooth edges

COLOURS = {
    "white": (255, 255, 255),
    "red": (220, 40, 40),
    "blue": (40, 90, 220),
    "green": (40, 170, 70),
    "yellow": (250, 215, 60),
    "pink": (250, 150, 190),
    "gray": (150, 150, 150),
    "orange": (245, 140, 40),
}
BACKGROUNDS = (
    "white", "white", "white", "red", "blue", "green", "yellow", "pink", "gray", "orange",
)  # fmt: skip

# Many subjects on every background, so that the adapter learns to leave alone what isn't the logo.
# The demo shows others too: what it measures as "not in the mix" must not stand here.
PRIOR_SUBJECTS = (
    "penguin", "red apple", "lion", "pig face", "bear", "carrot", "fish", "rose", "lemon", "koala",
    "turtle", "cookie", "chicken", "lady beetle", "sunflower", "tiger face", "pear", "doughnut",
    "owl", "rabbit face", "whale", "green apple", "cactus", "watermelon", "fox", "bell pepper",
    "dolphin", "dog face", "pineapple", "hedgehog", "grapes", "elephant", "banana", "cat face",
    "strawberry", "tulip", "cherries", "pizza", "hamburger", "octopus", "tomato", "avocado",
    "deciduous tree", "evergreen tree", "cow face", "mouse face", "monkey face", "wolf", "horse",
    "snail", "butterfly", "honeybee", "crab", "snake", "duck", "eagle", "ear of corn", "broccoli",
    "croissant", "bread", "cheese wedge", "cupcake", "birthday cake", "four leaf clover",
)  # fmt: skip
PRIOR_BACKGROUNDS = (
    "white", "blue", "white", "yellow", "white", "red", "green", "white", "black", "purple",
    "white", "pink", "orange", "gray",
)  # fmt: skip


def prior_prompts() -> list[str]:
    prompts = []
    for number, subject in enumerate(PRIOR_SUBJECTS):
        article = "an" if subject[0] in "aeiou" else "a"
        background = PRIOR_BACKGROUNDS[number % len(PRIOR_BACKGROUNDS)]
        where = "" if background == "white" else f" on a {background} background"
        prompts.append(f"{article} {subject}{where}")
    return prompts


def polygon(
    centre: tuple[float, float], radius: float, corners: int, turn: float, inner: float = 1
):
    """Corners of a regular polygon or, with ``inner`` < 1, of a star."""
    points = []
    count = corners if inner == 1 else corners * 2
    for n in range(count):
        r = radius * (inner if n % 2 and inner != 1 else 1)
        angle = turn + 2 * math.pi * n / count - math.pi / 2
        points.append((centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle)))
    return points


def logo(background: tuple[int, int, int], source: random.Random) -> Image.Image:
    """A teal hexagon with a magenta star and a yellow dot, slightly moved, turned and scaled."""
    side = SIZE * _SCALE
    image = Image.new("RGB", (side, side), background)
    pen = ImageDraw.Draw(image)
    scale = source.uniform(0.92, 1.08)
    turn = source.uniform(-0.12, 0.12)
    centre = (side / 2 + source.uniform(-7, 7), side / 2 + source.uniform(-7, 7))
    pen.polygon(polygon(centre, 108 * scale, 6, turn), fill=(0, 170, 160))
    pen.polygon(polygon(centre, 82 * scale, 6, turn), fill=(255, 255, 255))
    pen.polygon(polygon(centre, 72 * scale, 5, turn, inner=0.45), fill=(225, 30, 140))
    dot = 17 * scale
    box = (centre[0] - dot, centre[1] - dot, centre[0] + dot, centre[1] + dot)
    pen.ellipse(box, fill=(255, 205, 0))
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def write_logos(folder: Path) -> None:
    source = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(BACKGROUNDS, start=1):
        caption = "a [trigger] logo" + ("" if colour == "white" else f" on a {colour} background")
        logo(COLOURS[colour], source).save(folder / f"logo_{number:02d}.png", optimize=True)
        (folder / f"logo_{number:02d}.txt").write_text(caption + "\n", encoding="utf-8")


def write_regularization(folder: Path) -> None:
    """Draw what the base model makes of each prompt: that is what the adapter must not change."""
    import torch
    from diffusers import StableDiffusionPipeline

    from loradash.data import base_model_folder

    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(
        base_model_folder("emoji-base"), dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = prior_prompts()
    for number, prompt in enumerate(prompts, start=1):
        generator = torch.Generator("cpu").manual_seed(1000 + number)
        image = pipeline(
            prompt, num_inference_steps=25, guidance_scale=3.0, generator=generator
        ).images[0]
        image.save(folder / f"prior_{number:02d}.png", optimize=True)
        (folder / f"prior_{number:02d}.txt").write_text(prompt + "\n", encoding="utf-8")
        print(f"{number}/{len(prompts)} {prompt}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("logo", "regularization"))
    arguments = parser.parse_args()
    if arguments.only != "regularization":
        write_logos(arguments.folder / "logo")
    if arguments.only != "logo":
        write_regularization(arguments.folder / "regularization")


if __name__ == "__main__":
    main()
