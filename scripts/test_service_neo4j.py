"""Neo4j's set-up, without a network: what is pinned, and what is refused."""

import pathlib
import socket
import tempfile
import unittest
from unittest import mock

import service_neo4j
from maven import MavenPart
from parts import SetupError


class ServiceNeo4j(unittest.TestCase):
    def test_every_artifact_is_pinned_by_a_whole_hash(self):
        pins = service_neo4j.pins()
        self.assertGreater(len(pins), 100)
        for name, digest in pins.items():
            self.assertRegex(digest, "^[0-9a-f]{64}$", name)
            self.assertRegex(name, r"^[A-Za-z0-9._-]+\.jar$")
        self.assertIn(f"neo4j-server-{service_neo4j.VERSION}.jar", pins)

    def installed(self, folder, contents):
        """Installs with a registry that gives these contents for the two artifacts that are pinned here."""
        def brings(part):
            part.cache.mkdir(parents=True)
            for name, content in contents.items():
                (part.cache / name).write_bytes(content)

        # SHA-256 of "one" and of "two".
        pins = {"one.jar": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
                "two.jar": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"}
        with mock.patch.object(MavenPart, "require_tools"), mock.patch("builtins.print"), \
                mock.patch.object(service_neo4j, "pins", lambda: pins), \
                mock.patch.object(MavenPart, "download", brings):
            service_neo4j.install(folder)
        return pathlib.Path(folder) / "vendor/neo4j"

    def test_what_is_pinned_is_laid_in_place_and_no_other_file(self):
        with tempfile.TemporaryDirectory() as folder:
            vendor = self.installed(folder, {"one.jar": b"one", "two.jar": b"two", "three.jar": b"three"})
            self.assertEqual(sorted(path.name for path in vendor.glob("*.jar")), ["one.jar", "two.jar"])

    def test_a_file_that_is_not_the_pinned_one_or_missing_is_refused(self):
        for contents in ({"one.jar": b"one", "two.jar": b"other"}, {"one.jar": b"one"}):
            with tempfile.TemporaryDirectory() as folder:
                with self.assertRaises(SetupError):
                    self.installed(folder, contents)
                self.assertFalse((pathlib.Path(folder) / "vendor/neo4j").exists())

    def test_a_port_where_nobody_answers_is_not_ready(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.assertIsNone(service_neo4j.ready(free.getsockname()[1]))

    def test_it_listens_on_loopback_by_bolt_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            line = service_neo4j.command("/local", folder, 7)
            self.assertIn("org.neo4j.server.CommunityEntryPoint", line[-1])
            written = (pathlib.Path(folder) / "conf/neo4j.conf").read_text()
        self.assertIn("server.bolt.listen_address=127.0.0.1:7\n", written)
        self.assertIn("server.http.enabled=false\n", written)


if __name__ == "__main__":
    unittest.main()
