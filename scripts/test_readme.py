#!/usr/bin/env python3
"""The documents are true: the README's marked lines run against a server, and what documents name is there.

A block is marked by a comment of its own line before it:

    <!-- run -->                it is run
    <!-- run: tenant_admin -->  it is run when the key has this role
    <!-- shows: TEXT -->        and its output holds this text

The blocks are one script, from top to bottom, in a folder of their own. The server is named by BULKHEAD_TEST_URL, the
credential by BULKHEAD_TEST_KEY; the corpus of that tenant should be new. Without them nothing is run, nor said to be.

**Invariant:** this starts no server, and stops none.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- run(?:: (?P<role>\w+))? -->\n(?P<shows>(?:<!-- shows: [^\n]* -->\n)*)```sh\n(?P<text>.*?)```\n", re.S)
SHOWS = re.compile(r"<!-- shows: (.*) -->")
BORDER = "@@ block"
SECONDS = 300
PATHS = re.compile(r"`((?:src|tests|scripts|migrations|models|demo|docs|\.ci)/[\w./-]*\w/?|[A-Z]\w+(?:\.md|\.toml))`")
LINKS = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
TESTS = re.compile(r"`([a-z_]+)::([a-z0-9_]+)`")


def blocks(text):
    """The marked blocks of a document, as (role or None, texts that the output holds, shell lines)."""
    return [(m["role"], SHOWS.findall(m["shows"]), m["text"]) for m in BLOCK.finditer(text)]


def documents():
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def roles(url, key):
    request = urllib.request.Request(f"{url}/auth/whoami", headers={"X-API-Key": key})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["roles"]


class Readme(unittest.TestCase):
    def test_every_marked_block_is_recognised(self):
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        self.assertEqual(len(blocks(text)), len(re.findall(r"^<!-- run", text, re.M)))
        self.assertGreater(len(blocks(text)), 5)

    def test_the_marked_blocks_run_against_a_server(self):
        url, key = os.environ.get("BULKHEAD_TEST_URL"), os.environ.get("BULKHEAD_TEST_KEY")
        if not url or not key:
            self.skipTest("BULKHEAD_TEST_URL and BULKHEAD_TEST_KEY name no server to run them against")
        if shutil.which("curl") is None:
            self.skipTest("curl is not installed")
        held = roles(url, key)
        marked = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
        chosen = [(shows, text) for role, shows, text in marked if role is None or role in held]
        script = "\n".join(f'echo; echo "{BORDER} {n}"\n{text}' for n, (_, text) in enumerate(chosen))
        environment = {**os.environ, "BULKHEAD": url, "KEY": key}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                ["bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
            )
        outputs = re.split(rf"^{BORDER} \d+\n", done.stdout, flags=re.M)[1:]
        self.assertEqual(done.returncode, 0, f"in block {len(outputs)}:\n{outputs[-1] if outputs else done.stdout}")
        self.assertEqual(len(outputs), len(chosen))
        for (shows, text), output in zip(chosen, outputs):
            for wanted in shows:
                with self.subTest(block=text, shows=wanted):
                    self.assertIn(wanted, output)
        left_out = len(marked) - len(chosen)
        if left_out:
            self.skipTest(f"{len(chosen)} blocks ran; {left_out} want a role that the key has not: it has {held}")


class Named(unittest.TestCase):
    def test_every_file_that_a_document_names_is_there(self):
        for document in documents():
            text = document.read_text(encoding="utf-8")
            for path in PATHS.findall(text):
                with self.subTest(document=document.name, path=path):
                    self.assertTrue((ROOT / path).exists())
            for link in LINKS.findall(text):
                with self.subTest(document=document.name, link=link):
                    self.assertTrue((document.parent / link).exists())

    def test_every_test_that_a_document_names_is_there(self):
        for document in documents():
            for module, name in TESTS.findall(document.read_text(encoding="utf-8")):
                file = ROOT / "tests" / "suite" / f"{module}.rs"
                if not file.exists():
                    continue  # a path in the program, not a test
                with self.subTest(document=document.name, test=f"{module}::{name}"):
                    self.assertRegex(file.read_text(encoding="utf-8"), rf"\bfn {name}\b")


if __name__ == "__main__":
    unittest.main()
