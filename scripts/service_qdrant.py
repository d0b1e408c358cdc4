"""The stand-in for Qdrant, for `make services`: built from this tree, since Qdrant's own server is in no registry that
set-up uses. It is not Qdrant and says so: `stand-in (qdrant-edge 0.7.2)`."""

import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = "stand-in (qdrant-edge 0.7.2)"


def program() -> Path:
    """Where cargo puts it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "examples" / "qdrant-stand-in"


def install(local: Path) -> None:
    """Builds it; nothing is obtained, and nothing is kept in `local`."""
    build = ["cargo", "build", "--release", "--features", "laboratory", "--example", "qdrant-stand-in"]
    subprocess.run(build, cwd=ROOT, check=True)


def command(local: Path, folder: Path, port: int) -> list[str]:
    """What serves the collections in `folder` on this port of loopback. Its API key is `QDRANT_API_KEY`, from the
    environment: a command's words can be read by everybody on the machine."""
    return [str(program()), str(folder), str(port)]


def ready(port: int) -> str | None:
    """Product and version, once it listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return PRODUCT
    except OSError:
        return None
