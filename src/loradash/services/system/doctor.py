"""What this installation can do, in facts: versions, devices, folders, what is off and why."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import loradash
from loradash.data import EMBEDDED_BASE_MODELS, base_model_folder
from loradash.errors import LoradashError
from loradash.services.system.store_copy import PREFIXES
from loradash.settings import Settings
from loradash.storage.existence import ExistenceCache
from loradash.storage.keys import DATASET_MANIFEST
from loradash.storage.local import LocalStore
from loradash.storage.store import ObjectStore, Remote
from loradash.storage.transfer import in_parallel

Verdict = Literal["ok", "off", "bad"]

_LOOKED_AT = 50  # objects of an earlier folder
_ENGINE_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
_DEVICE_PROBE = """
import json, torch
devices = [
    {"name": torch.cuda.get_device_name(n),
     "total_gb": round(torch.cuda.mem_get_info(n)[1] / 2**30, 1),
     "free_gb": round(torch.cuda.mem_get_info(n)[0] / 2**30, 1)}
    for n in range(torch.cuda.device_count())
] if torch.cuda.is_available() else []
print(json.dumps({"cuda": devices, "mps": torch.backends.mps.is_available(),
                  "threads": torch.get_num_threads()}))
"""


class Finding(NamedTuple):
    """One fact; ``remedy`` says what to do where something is off or bad."""

    subject: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def examine(settings: Settings, store: ObjectStore) -> list[Finding]:
    """Look at everything that trainings and generations need.

    Starts one short Python for torch, and tries what a remote store can do.
    """
    findings = [
        Finding("loradash", "ok", loradash.__version__),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}"),
        _memory(),
    ]
    findings += _packages()
    findings.append(_devices())
    findings.append(_optional("bitsandbytes", "8-bit optimizers"))
    findings += [
        _writable("workspace", settings.workspace_path, "WORKSPACE_PATH"),
        *_object_store(settings, store),
        Finding("registry", "ok", settings.registry_url.partition("://")[0] + " database"),
        Finding(
            "downloads", "off" if settings.offline else "ok",
            "base models are only read from this machine" if settings.offline else "allowed",
            "Unset HF_HUB_OFFLINE and LORADASH_OFFLINE to allow them." if settings.offline else "",
        ),
    ]  # fmt: skip
    findings += [_embedded(name) for name in EMBEDDED_BASE_MODELS]
    return findings


def _object_store(settings: Settings, store: ObjectStore) -> list[Finding]:
    if not isinstance(store, Remote):
        return [_writable("object store", settings.objects_path, "LORADASH_OBJECTS_PATH")]
    where = f"bucket {settings.s3_bucket} at {settings.s3_endpoint_url or 'AWS'}"
    try:
        found = store.examine()
    except LoradashError as error:
        return [Finding("object store", "bad", f"{where}: {error.message}", error.remedy)]
    reasons = dict(note.partition(": ")[::2] for note in found.notes)
    findings = [Finding("object store", "ok", f"{where}, {found.provider}")]
    for name, is_there in asdict(found.capabilities).items():
        what = _MEANINGS[name]
        findings.append(
            Finding(f"  {name}", "ok", what)
            if is_there
            else Finding(f"  {name}", "off", f"{reasons.get(name, 'switched off')}; {what}: no")
        )
    others = (name for name in reasons if name not in _MEANINGS)
    findings += [Finding(f"  {name}", "off", reasons[name]) for name in others]
    left = left_behind(LocalStore(settings.objects_path), store)
    if left:
        findings.append(
            Finding(
                "  earlier folder", "off",
                f"{settings.objects_path} has results or datasets that aren't in the bucket "
                f"({left} of the first {_LOOKED_AT})",
                "Copy them: loradash storage copy.",
            )
        )  # fmt: skip
    return findings


def left_behind(folder: LocalStore, store: ObjectStore) -> int:
    """Return how many of a folder's first adapters and datasets aren't in the store."""
    keys = (
        info.key
        for prefix in PREFIXES
        for info in folder.list(prefix)
        if info.key.endswith(DATASET_MANIFEST) or "/lora/" in info.key
    )
    known = ExistenceCache(store)
    looked = in_parallel(list(islice(keys, _LOOKED_AT)), known.find, tries=1)
    return sum(info is None for _, info in looked.done)


_MEANINGS = {
    "conditional_create": "of several writers of a new object one wins",
    "conditional_replace": "of several writers of a new version one wins",
    "bulk_delete": "many objects are deleted by one request",
    "presign": "browsers load and store files at the provider, not through this server",
    "post_policy": "browsers upload with forms of limited size",
    "md5_etag": "uploads are verified without reading them back",
}


def _embedded(name: str) -> Finding:
    if (base_model_folder(name) / "unet/diffusion_pytorch_model.safetensors").is_file():
        return Finding(f"base model {name}", "ok", "embedded")
    return Finding(f"base model {name}", "bad", "its files are missing", "Reinstall loradash.")


def _packages() -> list[Finding]:
    findings = []
    for name in _ENGINE_PACKAGES:
        try:
            findings.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(
                Finding(name, "bad", "not installed", "pip install 'loradash[diffusers]'")
            )
    return findings


def _optional(name: str, purpose: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "off", f"not installed: no {purpose}", f"pip install {name}")


def _devices() -> Finding:
    result = subprocess.run(
        [sys.executable, "-c", _DEVICE_PROBE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("device", "bad", f"torch doesn't start: {last}", "Reinstall torch.")
    facts = json.loads(result.stdout)
    if facts["cuda"]:
        text = "; ".join(
            f"cuda:{n} {gpu['name']}, {gpu['free_gb']} of {gpu['total_gb']} GiB free"
            for n, gpu in enumerate(facts["cuda"])
        )
        return Finding("device", "ok", text)
    if facts["mps"]:
        return Finding("device", "ok", "mps (Apple GPU)")
    return Finding(
        "device", "off", f"no GPU, CPU with {facts['threads']} threads",
        "Enough for the embedded base model; real base models need a GPU.",
    )  # fmt: skip


def _memory() -> Finding:
    total = _or_zero(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Finding("memory", "ok", f"{total / 2**30:.1f} GiB, {os.cpu_count()} cores")


def _or_zero(read: Callable[[], int]) -> int:
    try:
        return read()
    except (ValueError, OSError):
        return 0


def _writable(subject: str, path: Path, variable: str) -> Finding:
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    if not os.access(existing, os.W_OK):
        return Finding(subject, "bad", f"{path} can't be written", f"Set {variable}.")
    free = shutil.disk_usage(existing).free / 2**30
    return Finding(subject, "ok", f"{path} ({free:.0f} GiB free)")
