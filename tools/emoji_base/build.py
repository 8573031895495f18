"""Command line: every stage of the build; each one continues or skips what is already there.

Run from the repository's root: ``python -m tools.emoji_base.build all``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import CheckpointMismatchError
from .icons import ALL_GROUPS, MODEL_GROUPS, load_icons, picture_sheet, render_icons, save_icons

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` doesn't need it
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from .denoiser import DenoiserTraining

_HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (CheckpointMismatchError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_icons(options: argparse.Namespace) -> None:
    """Render the SVG files of the npm packages."""
    path = _icons_path(options)
    if path.exists():
        _report(f"icons: {path} exists")
        return
    icons = render_icons(options.npm)
    save_icons(icons, path)
    chosen = icons.of_groups(MODEL_GROUPS)
    picture_sheet(chosen).save(path.with_suffix(".png"))
    _report(
        f"icons: {len(icons)} pictures of {len(icons.concepts())} concepts; "
        f"the denoiser learns {len(chosen)} of {len(chosen.concepts())}"
    )


def make_tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer on the caption grammar."""
    _prepare_torch(options)
    from .captions import corpus
    from .pipeline import save_component
    from .tokenizer import train_tokenizer

    folder = _tokenizer_path(options)
    if folder.exists():
        _report(f"tokenizer: {folder} exists")
        return
    icons = load_icons(_icons_path(options))
    concepts = icons.of_groups(MODEL_GROUPS).concepts()
    tokenizer = train_tokenizer(corpus(concepts, icons.concepts()))
    save_component(tokenizer, folder)
    longest = max(len(tokenizer(name.replace("-", " ")).input_ids) - 2 for name in concepts)
    _report(f"tokenizer: {len(tokenizer)} entries; the longest name takes {longest} tokens")


def make_vae(options: argparse.Namespace) -> None:
    """Train the autoencoder and fold the normalisation of its latents into it."""
    _prepare_torch(options)
    from .autoencoder import AutoencoderPlan, reconstruction, train_autoencoder
    from .pipeline import save_component

    folder = _vae_path(options)
    if folder.exists():
        _report(f"vae: {folder} exists")
        return
    icons = load_icons(_icons_path(options)).of_groups(ALL_GROUPS)
    vae = train_autoencoder(
        AutoencoderPlan(steps=options.vae_steps, seed=options.seed),
        icons,
        options.work / "vae.pt",
        save_every=options.vae_save_every,
        report=lambda line: _report(f"vae: {line}"),
    )
    psnr, sheet = reconstruction(vae, icons)
    sheet.save(folder.with_suffix(".png"))
    save_component(vae, folder)
    _report(f"vae: {folder} written, {psnr:.1f} dB")


def make_model(options: argparse.Namespace) -> None:
    """Train UNet and text encoder, from scratch or from the pipeline folder ``--init``."""
    _prepare_torch(options)
    import torch

    from .denoiser import DenoiserTraining, TrainingPlan, encode_latents, new_models, train
    from .pipeline import export_pipeline, load_pipeline

    icons = load_icons(_icons_path(options)).of_groups(MODEL_GROUPS)
    if options.init is None:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(_vae_path(options), local_files_only=True)
        tokenizer = _load_tokenizer(options)
        torch.manual_seed(options.seed)
        models = new_models(tokenizer)
    else:
        start = load_pipeline(options.init)
        vae, tokenizer, models = start.vae, start.tokenizer, (start.unet, start.text_encoder)
    latents = encode_latents(vae, icons, options.work / "latents.safetensors")
    plan = TrainingPlan(
        steps=options.steps,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    out = _out_path(options)

    def export(training: DenoiserTraining) -> None:
        export_pipeline(
            out,
            vae=vae,
            tokenizer=tokenizer,
            text_encoder=training.averaged_text_encoder,
            unet=training.averaged_unet,
        )
        _report(f"train: step {training.step} saved and exported to {out}")

    train(
        DenoiserTraining(plan, icons, latents, tokenizer, models),
        options.work / "train.pt",
        save_every=options.save_every,
        report=lambda line: _report(f"train: {line}"),
        after_save=export,
    )


def compare(options: argparse.Namespace) -> None:
    """Measure pipeline folders on the same pictures and noise."""
    _prepare_torch(options)
    from .evaluate import contact_sheet, recognition, velocity_loss

    icons = load_icons(_icons_path(options)).of_groups(MODEL_GROUPS)
    pipelines = _load_pipelines(options.models)
    results = {}
    for title, pipeline in pipelines.items():
        loss = velocity_loss(pipeline, icons)
        _report(f"{title}: v-prediction loss {loss.mean:.4f}")
        steps = " ".join(f"{t}:{value:.3f}" for t, value in loss.by_timestep.items())
        _report(f"{title}: by timestep {steps}")
        results[title] = {"loss": asdict(loss)}
        if options.recognition:
            seen = recognition(pipeline, icons, options.seed, _report)
            _report(
                f"{title}: recognised {seen.first} of {seen.concepts} "
                f"({seen.top5} among the five nearest), squared error {seen.picture_error:.4f}"
            )
            results[title]["recognition"] = asdict(seen)
    (options.work / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    contact_sheet(pipelines, seed=options.seed).save(options.work / "evaluation.png")
    _report(f"numbers and sheet: {options.work}/evaluation.json, evaluation.png")


def make_sheet(options: argparse.Namespace) -> None:
    """Draw the fixed prompts with one model."""
    _prepare_torch(options)
    from .evaluate import contact_sheet

    folder = _out_path(options)
    sheet = contact_sheet({folder.name: _load_pipelines([folder])[folder.name]}, seed=options.seed)
    path = folder.with_name(f"{folder.name}-samples.png")
    sheet.save(path)
    _report(f"sheet: {path}")


def make_all(options: argparse.Namespace) -> None:
    """Run every stage up to the sheet; with ``--init`` tokenizer and VAE come from there."""
    make_icons(options)
    if options.init is None:
        make_tokenizer(options)
        make_vae(options)
    make_model(options)
    make_sheet(options)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, default=Path("build/emoji_base"), metavar="DIR")
    shared.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    shared.add_argument("--seed", type=int, default=0)
    npm = argparse.ArgumentParser(add_help=False)
    npm.add_argument(
        "--npm", type=Path, default=_HERE / "node_modules", metavar="DIR", help="npm's packages"
    )
    vae = argparse.ArgumentParser(add_help=False)
    vae.add_argument("--vae-steps", type=int, default=3000)
    vae.add_argument("--vae-save-every", type=int, default=200)
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=Path, metavar="DIR", help="pipeline folder [WORK/model]")
    train = argparse.ArgumentParser(add_help=False, parents=[out])
    train.add_argument("--steps", type=int, default=12000)
    train.add_argument("--learning-rate", type=float, default=1e-3)
    train.add_argument("--batch-size", type=int, default=32)
    train.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    train.add_argument("--init", type=Path, metavar="MODEL_DIR", help="start from this pipeline")

    parser = argparse.ArgumentParser(prog="emoji_base", description=__doc__)
    stages = parser.add_subparsers(required=True, metavar="STAGE")

    def stage(name: str, run: object, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        doc = run.__doc__
        added = stages.add_parser(name, parents=[shared, *parents], help=doc, description=doc)
        added.set_defaults(run=run)
        return added

    stage("icons", make_icons, npm)
    stage("tokenizer", make_tokenizer)
    stage("vae", make_vae, vae)
    stage("train", make_model, train)
    comparison = stage("evaluate", compare)
    comparison.add_argument("models", type=Path, nargs="+", metavar="MODEL_DIR")
    comparison.add_argument("--recognition", action="store_true", help="also draw every concept")
    stage("sheet", make_sheet, out)
    stage("all", make_all, npm, vae, train)
    return parser


def _prepare_torch(options: argparse.Namespace) -> None:
    """Set the threads, and quiet the libraries before the noisy ones are imported."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _load_pipelines(folders: list[Path]) -> dict[str, StableDiffusionPipeline]:
    """Load models under their folders' names, or their whole paths where names are the same."""
    from .pipeline import load_pipeline

    distinct = len({folder.name for folder in folders}) == len(folders)
    return {folder.name if distinct else str(folder): load_pipeline(folder) for folder in folders}


def _load_tokenizer(options: argparse.Namespace) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(_tokenizer_path(options), local_files_only=True)


def _icons_path(options: argparse.Namespace) -> Path:
    return Path(options.work / "icons.npz")


def _tokenizer_path(options: argparse.Namespace) -> Path:
    return Path(options.work / "tokenizer")


def _vae_path(options: argparse.Namespace) -> Path:
    return Path(options.work / "vae")


def _out_path(options: argparse.Namespace) -> Path:
    return Path(options.out or options.work / "model")


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
