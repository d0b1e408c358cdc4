#!/usr/bin/env python3
"""Runs the README's shell blocks against a server, as somebody would who types them after `make run`.

usage: readme.py PROGRAM URL CREDENTIALS

CREDENTIALS is a file like `.local/demo.json`; the corpus of its first tenant should be new. The server's data folder
is named by BULKHEAD__DATA_DIR. `tests/clients` starts such a server and calls this.

Every block says by a comment of its own line before it what becomes of it:

    <!-- run -->              it is run
    <!-- not run: REASON -->  it is not
    <!-- shows: TEXT -->      and its output holds this text

The blocks are one script, from top to bottom, in a folder that looks like a checkout whose server runs.

**Invariant:** this starts no server, and stops none.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>run|not run: [^\n]+) -->\n)?(?P<shows>(?:<!-- shows: [^\n]* -->\n)*)```sh\n(?P<text>.*?)```\n", re.S
)
SHOWS = re.compile(r"<!-- shows: (.*) -->")
ADDRESS = "http://127.0.0.1:9621"
BORDER = "@@ block"
SECONDS = 300


def blocks(text):
    """The shell blocks of a document, as (mark or None, texts that the output holds, lines)."""
    return [(m["mark"], SHOWS.findall(m["shows"]), m["text"]) for m in BLOCK.finditer(text)]


def faults(text, program, url, credentials):
    """Runs a document's blocks; what was not as the document says, each as a text."""
    chosen = [(shows, lines) for mark, shows, lines in blocks(text) if mark == "run"]
    script = "\n".join(f'echo; echo "{BORDER} {n}"\n{lines}' for n, (_, lines) in enumerate(chosen))
    with tempfile.TemporaryDirectory() as folder:
        checkout = pathlib.Path(folder)
        for link, there in ((".local/demo.json", credentials), ("target/release/bulkhead", program)):
            (checkout / link).parent.mkdir(parents=True)
            (checkout / link).symlink_to(pathlib.Path(there).resolve())
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script.replace(ADDRESS, url)],
            cwd=checkout,
            env={**os.environ, "HOME": folder},  # nothing is written to the caller's own
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
    outputs = re.split(rf"^{BORDER} \d+\n", done.stdout, flags=re.M)[1:]
    found = []
    if done.returncode != 0 or len(outputs) != len(chosen):
        found.append(f"block {len(outputs)} ended with {done.returncode}:\n{outputs[-1] if outputs else done.stdout}")
    for (shows, lines), output in zip(chosen, outputs):
        found += [f"{wanted!r} is not shown by\n{lines}but\n{output}" for wanted in shows if wanted not in output]
    return found


def main():
    program, url, credentials = sys.argv[1:]
    found = faults((ROOT / "README.md").read_text(encoding="utf-8"), program, url, credentials)
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
