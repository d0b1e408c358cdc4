"""The stand-in for Qdrant: built from this tree, since Qdrant's own server is in no registry that set-up uses. It is not
Qdrant and says so. The suite has it in its own process; this is for `make services`."""

import os
import secrets
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = "stand-in for Qdrant (qdrant-edge 0.7.2)"


def program():
    """Where cargo puts it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "examples" / "qdrant-stand-in"


def install(local):
    """Nothing is obtained, and nothing is kept in `local`."""


def build():
    """Compiles it."""
    build = ["cargo", "build", "--release", "--features", "laboratory", "--example", "qdrant-stand-in"]
    subprocess.run(build, cwd=ROOT, check=True)


def command(local, folder, port):
    """What serves the collections in `folder` on this port of loopback. Its API key goes by the environment: a command's
    words can be read by everybody on the machine."""
    os.environ.setdefault("QDRANT_API_KEY", secrets.token_hex(16))
    return [str(program()), str(folder), str(port)]


def environment(port):
    """What points a server at it."""
    return {"BULKHEAD__VECTORS__BACKEND": "qdrant", "BULKHEAD__VECTORS__QDRANT__URL": f"http://127.0.0.1:{port}",
            "BULKHEAD__VECTORS__QDRANT__API_KEY": os.environ["QDRANT_API_KEY"]}


def ready(port):
    """Product and version, once it listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return PRODUCT
    except OSError:
        return None
