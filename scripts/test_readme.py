#!/usr/bin/env python3
"""The documents are true: what becomes of each of the README's shell blocks is said, and what documents name is there.

The blocks themselves are run by `tests/clients`, which starts a server for them.
"""

import pathlib
import re
import sys
import unittest

import readme

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATHS = re.compile(r"`((?:src|tests|scripts|migrations|models|demo|docs|docker|deploy|\.ci)/[\w./-]*\w/?|[A-Z]\w+(?:\.md|\.toml))`")
LINKS = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
TESTS = re.compile(r"`([a-z_]+)::([a-z0-9_]+)`")


def documents():
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


class Readme(unittest.TestCase):
    def setUp(self):
        self.text = (ROOT / "README.md").read_text(encoding="utf-8")

    def test_every_block_that_a_person_would_type_says_whether_it_is_run(self):
        blocks = readme.blocks(self.text)
        self.assertEqual(len(blocks), len(re.findall(r"^\s*```(?:sh|bash|console|shell)$", self.text, re.M)))
        self.assertGreater(sum(mark == "run" for mark, _, _ in blocks), 10)
        for mark, _, lines in blocks:
            with self.subTest(block=lines):
                self.assertIsNotNone(mark, "neither `run` nor `not run: REASON`")

    def test_what_fails_and_what_is_not_shown_is_told(self):
        block = "<!-- run -->\n<!-- shows: {} -->\n```sh\n{}\n```\n"
        run = lambda shows, line: readme.faults(block.format(shows, line), sys.executable, "http://nowhere", __file__)
        self.assertEqual(run("nowhere/x", "echo http://127.0.0.1:9621/x"), [])
        self.assertIn("is not shown by", *run("five", "echo four"))
        self.assertIn("block 1 ended with 1", run("", "echo begun; false | cat; echo on")[0])


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
                if (file.with_suffix("") / f"{name}.rs").exists():
                    continue  # a part of a test's module
                files = [*ROOT.glob(f"tests/*/**/{module}.rs"), *ROOT.glob(f"src/**/{module}/tests.rs")]
                text = "".join(file.read_text(encoding="utf-8") for file in files)
                with self.subTest(document=document.name, test=f"{module}::{name}"):
                    # A function, or an entry of a macro that makes one of it.
                    self.assertRegex(text, rf"(?m)\bfn {name}\b|^ +{name}: \w")


if __name__ == "__main__":
    unittest.main()
