"""The set-up with small wheels made here: no network, no registry, nothing outside a folder.

Run by `make test`. The last class uses the real model, where the set-up has brought it.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest
import zipfile
from unittest import mock

import parts

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {"pack/inner/bin/tool": b"program", "pack/inner/share/text": b"words", "other": b"unwanted"}


def recipe(archive, folder):
    parts.unpack(archive, folder, lambda name: name if name.startswith("pack/") else None)


class Interrupted(BaseException):
    """Stands for the process ending at a point: nothing in the set-up catches it."""


class SetupCase(unittest.TestCase):
    def setUp(self):
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="set-up-"))
        self.addCleanup(shutil.rmtree, self.local)
        (self.local / "cache").mkdir()
        (self.local / "vendor").mkdir()
        self.entry = {"name": "tool", "holds": "the tool", "package": "tool", "recipe": 1}
        self.downloads = 0
        self.release("1.0")
        silence = contextlib.redirect_stdout(io.StringIO())
        silence.__enter__()
        self.addCleanup(silence.__exit__, None, None, None)

    def release(self, version):
        """Publishes a version in the pretended registry and pins it."""
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in {**FILES, "pack/inner/version": version.encode()}.items():
                archive.writestr(name, content)
        self.published = data.getvalue()
        digest = hashlib.sha256(self.published).hexdigest()
        wheel = {"file": f"tool-{version}.whl", "sha256": digest}
        self.entry.update(version=version, wheels={platform.machine(): wheel})

    def part(self, **options):
        return parts.Part(self.entry, self.local, "vendor", **options)

    def run_setup(self, part=None):
        """What scripts/setup.py does for one part; returns whether there was work."""
        part = part or self.part()
        if part.is_installed("pack/inner", ["bin/tool"]):
            return False

        def download(folder):
            self.downloads += 1
            (folder / part.file).write_bytes(self.published)

        with mock.patch.object(part, "_download", download):
            part.install(recipe, "pack/inner")
        return True

    def assert_installed(self, version):
        link = self.local / "vendor/tool"
        self.assertEqual((link / "version").read_text(), version)
        self.assertEqual((link / "bin/tool").read_bytes(), b"program")
        self.assertFalse((link.resolve().parent.parent / "other").exists())


class Installing(SetupCase):
    def test_a_second_run_does_nothing(self):
        self.assertTrue(self.run_setup())
        self.assertFalse(self.run_setup())
        self.assertEqual(self.downloads, 1)
        self.assert_installed("1.0")

    def test_after_an_interruption_at_any_point_the_next_run_finishes(self):
        points = [(parts, "sha256"), (parts, "find_pip"), (zipfile, "ZipFile"), (parts, "unpack"),
                  (shutil, "copyfileobj"), (parts, "readable_by_all"), (os, "sync"),
                  (os, "rename"), (os, "replace"), (pathlib.Path, "symlink_to")]
        for owner, name in points:
            with self.subTest(point=name):
                self.setUp()
                part = self.part()
                with mock.patch.object(owner, name, side_effect=Interrupted), \
                        contextlib.suppress(Interrupted, parts.SetupError):
                    part.wheel() if name == "find_pip" else self.run_setup(part)
                self.assertFalse((self.local / "vendor/tool").exists())
                self.assertTrue(self.run_setup())
                self.assert_installed("1.0")

    def test_an_interrupted_upgrade_leaves_the_old_version_in_use(self):
        self.run_setup()
        self.release("2.0")
        with mock.patch.object(os, "sync", side_effect=Interrupted), self.assertRaises(Interrupted):
            self.run_setup()
        self.assert_installed("1.0")
        self.run_setup()
        self.assert_installed("2.0")

    def test_a_missing_file_is_noticed_and_mended_from_the_cache(self):
        self.run_setup()
        (self.local / "vendor/tool/bin/tool").unlink()
        self.assertTrue(self.run_setup())
        self.assertEqual(self.downloads, 1)
        self.assert_installed("1.0")

    def test_a_folder_put_there_by_hand_is_replaced_but_kept_aside(self):
        (self.local / "vendor/tool").mkdir()
        (self.local / "vendor/tool/own").write_text("by hand")
        self.run_setup()
        self.assert_installed("1.0")
        self.assertEqual((self.local / "vendor/.tool.aside/own").read_text(), "by hand")

    def test_every_user_may_read_the_result_whatever_the_umask(self):
        self.addCleanup(os.umask, os.umask(0o077))
        self.run_setup()
        folder = (self.local / "vendor/tool").resolve()
        self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o755)
        self.assertEqual(stat.S_IMODE((folder / "bin/tool").stat().st_mode), 0o755)
        self.assertEqual(stat.S_IMODE((folder / "share/text").stat().st_mode), 0o644)


class Obtaining(SetupCase):
    def failure(self, part=None):
        with self.assertRaises(parts.SetupError) as caught:
            (part or self.part()).wheel()
        return f"{caught.exception}\n{caught.exception.remedy}"

    def test_a_damaged_wheel_in_the_cache_is_fetched_again(self):
        (self.local / "cache/tool-1.0.whl").write_bytes(self.published[:-1])
        self.run_setup()
        self.assertEqual(self.downloads, 1)
        self.assert_installed("1.0")

    def test_a_wheel_laid_into_the_cache_needs_no_network(self):
        (self.local / "cache/tool-1.0.whl").write_bytes(self.published)
        self.run_setup()
        self.assertEqual(self.downloads, 0)
        self.assert_installed("1.0")

    def test_a_download_with_another_hash_is_refused_and_not_kept(self):
        part = self.part()
        self.published += b"something else"
        with self.assertRaises(parts.SetupError) as caught:
            self.run_setup(part)
        self.assertIn(part.sha256, str(caught.exception))
        self.assertIn(hashlib.sha256(self.published).hexdigest(), str(caught.exception))
        self.assertEqual(list((self.local / "cache").glob("*.whl")), [])
        self.assertFalse((self.local / "vendor/tool").exists())

    def test_a_failed_download_names_the_part_and_the_way_without_a_network(self):
        with mock.patch.object(parts, "find_pip", return_value=[sys.executable, "-c", "exit(1)"]):
            words = self.failure()
        self.assertIn("the tool", words)
        self.assertIn("lay the file tool-1.0.whl into", words)

    def test_without_pip_the_message_says_how_to_get_it(self):
        with mock.patch.object(parts, "_present_pip", return_value=None), \
                mock.patch.object(os, "geteuid", return_value=1000):
            words = self.failure()
        self.assertIn("the tool", words)
        self.assertIn("apt-get install python3-pip", words)

    def test_a_machine_without_a_wheel_is_told_so(self):
        with self.assertRaises(parts.SetupError) as caught:
            self.part(machine="riscv64")
        self.assertIn("the tool: there is no ready-made package for riscv64", str(caught.exception))

    def test_the_pins_are_whole(self):
        pins = json.loads((ROOT / "scripts/parts.json").read_text())
        for entry in pins["parts"] + pins["tools"]:
            for wheel in entry["wheels"].values():
                self.assertRegex(wheel["sha256"], "^[0-9a-f]{64}$")
                self.assertTrue(wheel["file"].endswith(".whl"))
                self.assertIn(f"-{entry['version']}-", wheel["file"])


class Converting(unittest.TestCase):
    def check(self, change):
        """Checks the real model against its manifest after `change` has altered that."""
        model = ROOT / ".local/models/all-MiniLM-L6-v2/model.onnx"
        if not model.exists():
            self.skipTest("make setup has not brought the model")
        manifest = json.loads((ROOT / "models/all-MiniLM-L6-v2.json").read_text())
        change(manifest)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(manifest, file)
            file.flush()
            runtime = ROOT / ".local/vendor/onnxruntime/libonnxruntime.so"
            return subprocess.run(
                [sys.executable, ROOT / "models/convert.py", "--manifest", file.name,
                 "--check", model, "--runtime", runtime],
                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)

    def test_the_model_gives_the_known_vectors(self):
        self.assertEqual(self.check(lambda manifest: None).stderr, "")

    def test_a_vector_that_is_slightly_off_fails_the_check(self):
        def change(manifest):
            manifest["known_vectors"][1]["starts"][3] += 3e-5

        done = self.check(change)
        self.assertEqual(done.returncode, 1)
        self.assertIn("'Each sentence is converted' is off by 3.0e-05", done.stderr)


if __name__ == "__main__":
    unittest.main()
