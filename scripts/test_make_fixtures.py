#!/usr/bin/env python3
"""Tests of the fixture generator: small, complete, the same on every run, and as hostile as it says."""

import io
import json
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

import make_fixtures

MOST_BYTES = 512 * 1024


class Fixtures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = {name: (content, described) for name, content, described in make_fixtures.fixtures()}

    def test_every_file_is_small_and_described_once(self):
        names = [name for name, _, _ in make_fixtures.fixtures()]
        self.assertEqual(len(names), len(set(names)))
        for name, (content, described) in self.files.items():
            self.assertLessEqual(len(content), MOST_BYTES, name)
            self.assertEqual(described["file"], name)
            self.assertIn(described["expect"], ("text", "refused", "either"))

    def test_the_command_writes_the_same_bytes_as_another_run(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, make_fixtures.__file__, folder], check=True)
            manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
            self.assertEqual(manifest, [described for _, described in self.files.values()])
            for name, (content, _) in self.files.items():
                self.assertEqual((Path(folder) / name).read_bytes(), content, name)

    def test_the_good_archives_are_sound_and_the_bombs_grow_a_hundredfold(self):
        for name in ("document.docx", "slides.pptx", "sheet.xlsx", "book.epub"):
            self.assertIsNone(zipfile.ZipFile(io.BytesIO(self.files[name][0])).testzip(), name)
        for name in ("bomb.docx", "bomb.xlsx", "bomb.epub", "overlap.docx"):
            content = self.files[name][0]
            grown = sum(info.file_size for info in zipfile.ZipFile(io.BytesIO(content)).infolist())
            self.assertGreater(grown, 100 * len(content), name)

    def test_every_supported_format_has_a_good_file(self):
        good = {name.rsplit(".", 1)[1] for name, (_, d) in self.files.items() if d["expect"] == "text"}
        formats = "txt md html json jsonl csv pdf docx pptx xlsx epub"
        self.assertEqual(good, set(formats.split()))


if __name__ == "__main__":
    unittest.main()
