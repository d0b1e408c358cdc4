#!/usr/bin/env python3
"""Tests of the demo: the corpus keeps what its README says, and `demo.py` runs its flow against a stand-in server."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
DEMO = SCRIPTS.parent / "demo"


def documents(folder):
    """Text of each file with white space normalised, since wrapped lines may break a fact."""
    return {p.name: re.sub(r"\s+", " ", p.read_text(encoding="utf-8")) for p in sorted((DEMO / folder).iterdir())}


class Corpus(unittest.TestCase):
    def setUp(self):
        self.tenants = json.loads((DEMO / "tenants.json").read_text())
        self.questions = json.loads((DEMO / "questions.json").read_text())
        self.texts = {t["slug"]: documents(t["folder"]) for t in self.tenants}

    def test_both_tenants_have_the_same_file_names_and_no_file_in_common(self):
        one, two = self.texts.values()
        self.assertEqual(list(one), list(two))
        for name in one:
            self.assertNotEqual(one[name], two[name], name)

    def test_every_document_has_a_readable_length(self):
        for texts in self.texts.values():
            for name, text in texts.items():
                self.assertTrue(80 <= len(text.split()) <= 350, (name, len(text.split())))

    def test_every_fact_is_in_its_source_and_nowhere_in_the_neighbour(self):
        for question in self.questions:
            self.assertEqual(set(question["expected"]), set(self.texts))
            for slug, expected in question["expected"].items():
                (neighbour,) = set(self.texts) - {slug}
                fact = expected["fact"].lower()
                self.assertTrue(any(fact in self.texts[slug][name].lower() for name in expected["sources"]), expected)
                self.assertFalse([n for n, t in self.texts[neighbour].items() if fact in t.lower()], expected)

    def test_structured_files_are_well_formed(self):
        for tenant in self.tenants:
            for path in (DEMO / tenant["folder"]).iterdir():
                if path.suffix == ".json":
                    json.loads(path.read_text())
                if path.suffix == ".jsonl":
                    [json.loads(line) for line in path.read_text().splitlines()]


class Flow(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def environment(self, **extra):
        return {
            **os.environ,
            "BULKHEAD_BIN": str(SCRIPTS / "fake_bulkhead.py"),
            "BULKHEAD__HTTP__ADDRESS": f"127.0.0.1:{self.port}",
            "FAKE_HOME": str(self.home),
            **extra,
        }

    def start(self, *arguments, **extra):
        child = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "demo.py"), "--state", str(self.home / "state"), *arguments],
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(lambda: child.poll() is None and child.kill())
        return child

    def once(self, **extra):
        child = self.start("--once", **extra)
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err

    def fake(self):
        return json.loads((self.home / "fake.json").read_text())

    def forget_calls(self):
        value = self.fake()
        value["calls"] = []
        (self.home / "fake.json").write_text(json.dumps(value))

    def test_the_first_start_ingests_everything_and_shows_each_tenants_answer(self):
        code, out, err = self.once()
        self.assertEqual((code, err), (0, ""), out)
        credentials = json.loads((self.home / "state" / "demo.json").read_text())
        self.assertEqual([set(c) for c in credentials], [{"name", "tenant_id", "api_key"}] * 2)
        self.assertEqual(stat.S_IMODE((self.home / "state" / "demo.json").stat().st_mode), 0o600)
        for tenant in json.loads((DEMO / "tenants.json").read_text()):
            (entry,) = [c for c in credentials if c["name"] == tenant["name"]]
            stored = {n: row["content"] for n, row in self.fake()["documents"][entry["tenant_id"]].items()}
            self.assertEqual(stored, {p.name: p.read_text() for p in (DEMO / tenant["folder"]).iterdir()})
            self.assertIn(entry["api_key"], out)
        one_line = re.sub(r"\s+", " ", out)
        for words in ("heat pump controller", "mobile dental chair", "[1] product-halcyon.md", "/docs", "curl -s http"):
            self.assertIn(words, one_line)
        self.assertIn("vectors.backend  qdrant-edge", out)
        self.assertIn("audit_log        postgres", out)
        self.assertNotIn("top_k", out)
        self.assertIn("processed [##############################] 40/40", out)

    def test_the_second_start_creates_and_uploads_nothing_and_is_quick(self):
        self.once()
        before = (self.home / "state" / "demo.json").read_bytes()
        self.forget_calls()
        began = time.monotonic()
        code, out, _ = self.once()
        self.assertEqual(code, 0)
        self.assertLess(time.monotonic() - began, 3)
        self.assertEqual(self.fake()["calls"], ["/query", "/query"])
        self.assertEqual((self.home / "state" / "demo.json").read_bytes(), before)
        self.assertIn("mobile dental chair", re.sub(r"\s+", " ", out))

    def test_lost_credentials_are_made_again_for_the_same_tenants(self):
        self.once()
        (self.home / "state" / "demo.json").unlink()
        self.assertEqual(self.once()[0], 0)
        self.assertEqual(len(self.fake()["tenants"]), 2)
        self.assertEqual(len(self.fake()["keys"]), 4)

    def test_a_fresh_server_with_old_credentials_is_filled_again(self):
        self.once()
        (self.home / "fake.json").unlink()
        self.assertEqual(self.once()[0], 0)
        self.assertEqual([len(rows) for rows in self.fake()["documents"].values()], [20, 20])

    def test_an_interrupted_ingestion_is_finished_by_the_next_start(self):
        self.once()
        value = self.fake()
        del value["documents"]["t-1"]["people.csv"]
        (self.home / "fake.json").write_text(json.dumps(value))
        self.assertEqual(self.once()[0], 0)
        self.assertIn("people.csv", self.fake()["documents"]["t-1"])

    def test_a_failed_document_is_named_with_its_reason(self):
        code, out, _ = self.once(FAKE_FAIL="people.csv")
        self.assertEqual(code, 0)
        self.assertIn("people.csv: planted", out)

    def test_a_signal_reaches_the_server_once_and_its_exit_code_comes_back(self):
        for signum, mode, expected in ((signal.SIGINT, "", 0), (signal.SIGTERM, "unclean", 7)):
            child = self.start(FAKE_MODE=mode)
            for line in child.stdout:
                if line.startswith("Serving until"):
                    break
            child.send_signal(signum)
            child.communicate(timeout=30)
            self.assertEqual(child.returncode, expected)
            log = (self.home / "state" / "server.log").read_text()
            self.assertIn(f"stopped by signals [{signum.value}]", log)

    def test_a_server_that_dies_at_start_is_explained_by_its_log(self):
        code, _, err = self.once(FAKE_MODE="die")
        self.assertEqual(code, 1)
        self.assertIn("exit code 3", err)
        self.assertIn("no database here", err)

    def test_a_port_in_use_is_said_before_anything_is_started(self):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", self.port))
            holder.listen()
            code, _, err = self.once()
        self.assertEqual(code, 1)
        self.assertIn(f"Port {self.port} on 127.0.0.1 is in use", err)
        self.assertFalse((self.home / "fake.json").exists())

    def test_a_missing_program_is_named(self):
        code, _, err = self.once(BULKHEAD_BIN=str(self.home / "absent"))
        self.assertEqual(code, 1)
        self.assertIn("cannot be started", err)


if __name__ == "__main__":
    unittest.main()
