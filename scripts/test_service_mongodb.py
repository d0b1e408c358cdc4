"""The stand-in's set-up, without a network: what is pinned, and what is refused."""

import pathlib
import socket
import tempfile
import unittest
from unittest import mock

import service_mongodb
from maven import MavenPart
from parts import SetupError


class ServiceMongodb(unittest.TestCase):
    def test_every_artifact_is_pinned_by_a_whole_hash(self):
        for artifact in service_mongodb.ARTIFACTS:
            self.assertRegex(artifact[3], "^[0-9a-f]{64}$", artifact)

    def test_a_file_that_is_not_the_pinned_one_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            cache = pathlib.Path(folder) / "cache/maven"

            def brings_others(part):
                part.cache.mkdir(parents=True)
                for name in part.pins:
                    (part.cache / name).write_bytes(b"another")

            with mock.patch.object(MavenPart, "require_tools"), \
                    mock.patch.object(MavenPart, "download", brings_others), \
                    self.assertRaises(SetupError):
                service_mongodb.install(folder)
            self.assertTrue(cache.exists())
            self.assertFalse((pathlib.Path(folder) / "vendor/mongodb").exists())

    def test_a_port_where_nobody_answers_is_not_ready(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.assertIsNone(service_mongodb.ready(free.getsockname()[1]))

    def test_the_command_names_the_folder_and_the_port(self):
        line = service_mongodb.command("/local", "/data", 7)
        self.assertEqual(line[0], "java")
        self.assertEqual(line[-2:], ["/data/mongodb.mv", "7"])


if __name__ == "__main__":
    unittest.main()
