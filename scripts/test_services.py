"""Debian packages and services with small packages made here: no network, nothing outside a folder.

Run by `make test`. The last class starts the real Redis, where the set-up has brought it.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from unittest import mock

import debian
import service_pgbouncer
import service_redis
import services
from parts import SetupError

FILES = {"./usr/bin/tool": b"program", "./usr/lib/machine/libtool.so.1.0": b"library", "./etc/tool.conf": b"no"}


def package(files=FILES, links=(("./usr/lib/machine/libtool.so.1", "libtool.so.1.0"),)):
    """A Debian package with these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())]
    whole = b"!<arch>\n"
    for name, content in members:
        whole += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        whole += content + b"\n" * (len(content) % 2)
    return whole


def wanted(path):
    return {"usr/bin/tool": "bin/tool"}.get(path) or (
        f"lib/{path.rpartition('/')[2]}" if ".so" in path else None)


class PackageCase(unittest.TestCase):
    def setUp(self):
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="packages-"))
        self.addCleanup(shutil.rmtree, self.local)
        for name in ("cache", "vendor"):
            (self.local / name).mkdir()
        self.published = {"1": package(), "2": package({**FILES, "./usr/bin/tool": b"newer"})}
        self.mirror = ["2", "1"]
        self.asked = []
        silence = contextlib.redirect_stdout(io.StringIO())
        silence.__enter__()
        self.addCleanup(silence.__exit__, None, None, None)

    def part(self, recipe=1):
        pins = [{"version": version, "file": f"tool_{version}.deb",
                 "sha256": hashlib.sha256(self.published[version]).hexdigest()} for version in ("2", "1")]
        return debian.DebianPart(
            {"name": "tool", "holds": "the tool", "recipe": recipe,
             "packages": {platform.machine(): {"tool": pins}}}, self.local, "vendor")

    def apt(self, command, cwd=None, **_):
        """Stands for apt with a mirror that keeps some versions."""
        self.asked.append(command[1])
        if command[1] == "download":
            version = command[-1].partition("=")[2]
            if version not in self.mirror:
                return subprocess.CompletedProcess(command, 100, stderr="E: not found\n")
            (cwd / f"tool_1%3a{version}_amd64.deb").write_bytes(self.served(version))
        return subprocess.CompletedProcess(command, 0, stderr="")

    def served(self, version):
        return self.published[version]

    def install(self, part):
        with mock.patch.object(subprocess, "run", self.apt), \
                mock.patch.object(shutil, "which", lambda name: f"/usr/bin/{name}"):
            part.install(wanted)


class Packages(PackageCase):
    def test_the_files_that_are_wanted_are_there_and_no_others(self):
        part = self.part()
        self.install(part)
        link = self.local / "vendor/tool"
        self.assertTrue(part.is_installed("", ("bin/tool", "lib/libtool.so.1")))
        self.assertEqual((link / "bin/tool").read_bytes(), b"newer")
        self.assertEqual((link / "lib/libtool.so.1").read_bytes(), b"library")
        self.assertEqual(sorted(path.name for path in link.rglob("*") if not path.is_dir()),
                         ["libtool.so.1", "libtool.so.1.0", "tool"])
        self.assertTrue(os.access(link / "bin/tool", os.X_OK))

    def test_a_mirror_that_has_only_the_older_version_serves_it(self):
        self.mirror = ["1"]
        self.install(self.part())
        self.assertEqual((self.local / "vendor/tool/bin/tool").read_bytes(), b"program")

    def test_what_is_in_the_cache_is_not_fetched_again(self):
        self.install(self.part())
        self.asked.clear()
        self.install(self.part(recipe=2))
        self.assertEqual(self.asked, [])

    def test_another_content_than_a_pinned_one_is_refused(self):
        self.served = lambda version: package({"./usr/bin/tool": b"altered"})
        with self.assertRaisesRegex(SetupError, "not pinned"):
            self.install(self.part())
        self.assertFalse((self.local / "vendor/tool").exists())
        self.assertEqual(list((self.local / "cache").glob("*.deb")), [])

    def test_lists_are_fetched_once_when_no_version_is_found(self):
        self.mirror = []
        with self.assertRaisesRegex(SetupError, "E: not found"):
            self.install(self.part())
        self.assertEqual(self.asked, ["download", "download", "update", "download", "download"])

    def test_links_and_names_lead_out_of_no_folder(self):
        self.published["2"] = package({"./../../outside.so": b"x"}, [("./usr/lib/a.so", "/etc/passwd"),
                                                                     ("./usr/lib/b.so", "../../b")])
        self.install(self.part())
        found = [path.name for path in (self.local / "vendor/tool").rglob("*") if not path.is_dir()]
        self.assertEqual(found, ["outside.so"])

    def test_a_machine_without_a_pin_is_told_for_which_there_is_one(self):
        with self.assertRaisesRegex(SetupError, platform.machine()):
            debian.DebianPart({"name": "tool", "holds": "the tool", "recipe": 1,
                               "packages": {platform.machine(): {}}}, self.local, "vendor", "abacus")


def service(works=True):
    """A service that is Python's own web server, or nothing."""
    def install(local):
        if not works:
            raise SetupError("it", "there is none", "Bring one.")

    def command(local, folder, port):
        words = ["-m", "http.server", str(port), "--bind", "127.0.0.1"] if works else ["-c", "exit(3)"]
        return [sys.executable, *words]

    def ready(port):
        with contextlib.suppress(OSError), services.socket.create_connection(("127.0.0.1", port), timeout=1):
            return "Server 1.0"

    return types.SimpleNamespace(install=install, command=command, ready=ready,
                                 environment=lambda port: {"BULKHEAD__SERVICE__PORT": port})


class Services(PackageCase):
    def test_each_is_started_named_and_ended(self):
        seen = {}

        def until():
            seen["printed"] = printed.getvalue()
            seen["port"] = int(seen["printed"].partition("BULKHEAD__SERVICE__PORT=")[2].split()[0])
            seen["ready"] = service().ready(seen["port"])

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            services.run(self.local, {"one": service()}, until)
        self.assertIn(f"# Server 1.0 on 127.0.0.1:{seen['port']}\n", seen["printed"])
        self.assertEqual(seen["ready"], "Server 1.0")
        self.assertIsNone(service().ready(seen["port"]))

    def test_one_that_ends_at_once_is_told_and_the_others_end_too(self):
        running = []
        started = services.Running.__init__

        def init(self, *arguments):
            started(self, *arguments)
            running.append(self)

        with mock.patch.object(services.Running, "__init__", init), self.assertRaisesRegex(SetupError, "two"):
            services.run(self.local, {"one": service(), "two": service(works=False)}, lambda: self.fail("ran"))
        self.assertEqual([one.process.poll() is not None for one in running], [True, True])

    def test_a_services_folder_holds_nothing_but_its_own(self):
        with contextlib.redirect_stdout(io.StringIO()), \
                services.running_in(self.local, {"one": service()}, self.local / "data"):
            self.assertEqual(list((self.local / "data/one").iterdir()), [])
            self.assertTrue((self.local / "data/one.log").exists())

    def ran(self, script, **found):
        """Exit code of a Python program that is run with the environment of the services, and what it printed."""
        with tempfile.TemporaryFile("w+") as output, contextlib.redirect_stdout(io.StringIO()):
            popen = subprocess.Popen
            with mock.patch.object(subprocess, "Popen",
                                   lambda command, **how: popen(command, **{"stdout": output, **how})):
                code = services.run_with(self.local, found, self.local / "data", [sys.executable, "-c", script],
                                         {"FURTHER": "more"})
            output.seek(0)
            return code, output.read()

    def test_a_command_runs_with_the_environment_of_the_services_and_its_exit_code_comes_back(self):
        code, printed = self.ran("import os; print(os.environ['BULKHEAD__SERVICE__PORT'], os.environ['FURTHER']); exit(7)",
                                 one=service())
        self.assertEqual(code, 7)
        port, more = printed.split()
        self.assertEqual(more, "more")
        self.assertIsNone(service().ready(int(port)))

    def test_a_signal_reaches_the_command_once_and_the_services_end_after_it(self):
        script = """if True:
            import os, signal, time
            seen = []
            signal.signal(signal.SIGINT, lambda *_: seen.append(1))
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(0.5)
            exit(40 + len(seen))"""
        self.assertEqual(self.ran(script, one=service())[0], 41)

    def test_the_demo_and_a_command_want_every_service(self):
        for arguments in (["demo"], ["with", "true"]):
            with self.assertRaisesRegex(SystemExit, "two"):
                self.told(arguments, {"one": service(), "two": service(works=False)})

    def test_the_demo_runs_on_the_services_with_a_folder_of_its_own(self):
        seen = {}

        def run_with(local, found, data, command, further):
            seen.update(local=local, found=found, data=data, command=command, further=dict(further))
            return 5

        with mock.patch.object(services, "run_with", run_with), self.assertRaises(SystemExit) as ended:
            self.told(["demo"], {"one": service()})
        self.assertEqual(ended.exception.code, 5)
        self.assertEqual(seen["command"][1:], [str(services.HERE / "demo.py")])
        self.assertEqual(seen["further"], {"BULKHEAD__DATA_DIR": str(seen["local"] / "services/demo/data")})

    def test_one_that_cannot_be_had_is_told_by_name(self):
        found = {"one": service(), "two": service(works=False)}
        self.assertEqual(list(services.install(self.local, found)), ["two"])

    def test_one_that_stands_in_front_of_another_or_is_not_there_is_not_started(self):
        alone, front = service(), service()
        front.STARTS_ALONE = False
        found = {"alone": alone, "front": front, "gone": service()}
        self.assertEqual(services.started(found, {"gone": "why"}), {"alone": alone})

    def test_every_service_has_what_is_asked_of_it(self):
        for name, module in services.services().items():
            for asked in ("install", "command", "ready", "environment"):
                self.assertTrue(callable(getattr(module, asked)), f"{name}.{asked}")
            self.assertTrue(module.PRODUCT, name)

    def told(self, arguments, found):
        with mock.patch.object(services, "services", lambda: found), \
                mock.patch.object(services, "ROOT", self.local.parent / self.local.name), \
                contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()) as printed:
            (self.local / ".local").mkdir(exist_ok=True)
            printed.reconfigure = lambda **_: None
            services.main(arguments)
        return printed.getvalue()

    def test_the_tests_of_one_that_is_not_there_are_kept_from_running_and_told(self):
        one, two = service(), service(works=False)
        one.PRODUCT, two.PRODUCT, two.TESTS, two.OWN_TESTS = "Server 1.0", "Other 2.0", ("other::",), ("more::",)
        found = {"one": one, "two": two}
        why = SetupError("it", "there is none", "Bring one.")
        self.assertEqual(self.told(["skips"], found), "--skip more:: --skip other::\n")
        self.assertEqual(self.told(["told"], found).splitlines()[-3:],
                         ["service one: Server 1.0", f"service two: its tests were not run: {why}",
                          "the API's tests on all services: not run without two"])
        with mock.patch.dict(os.environ, {"TWO_URL": "two://"}):
            self.assertEqual(self.told(["skips"], found), "--skip more::\n")
            self.assertIn("the server that TWO_URL names; what stops it was not run", self.told(["told"], found))
        with mock.patch.dict(os.environ, {"BULKHEAD_REQUIRE": "two"}), self.assertRaises(SystemExit):
            self.told(["skips"], found)

    def test_what_could_be_had_is_named_for_a_program_and_what_could_not_ends_with_3(self):
        loud = service()
        loud.install = lambda local: subprocess.run(["echo", "noise of a program"], check=True)
        found = {"one": loud, "two": service(works=False)}
        self.assertEqual(self.told(["obtained"], found), "one\n")
        for services_found, code in ((found, 3), ({"one": loud}, 0)):
            with self.assertRaises(SystemExit) as ended:
                self.told(["complete"], services_found)
            self.assertEqual(ended.exception.code, code)

    def test_the_tests_of_whole_servers_run_on_all_services_or_say_that_they_did_not(self):
        command = services.api_command([])
        words = command[command.index("--") + 1:]
        skipped = [words[n + 1] for n, word in enumerate(words) if word == "--skip"]
        modules = [word for word in words if word.endswith("::")]
        self.assertGreater(len(modules), 15)
        self.assertEqual(len(words), len(modules) + 2 * len(skipped))
        for test in [*modules, *skipped]:
            *modules_in, name = test.split("::")
            text = (services.ROOT / f"tests/suite/{'/'.join(modules_in)}.rs").read_text(encoding="utf-8")
            self.assertRegex(text, rf"\bfn {name}\b" if name else ".")

    def test_every_module_that_starts_servers_is_run_on_services_or_says_why_not(self):
        lines = (services.ROOT / "tests/suite/on_services.txt").read_text(encoding="utf-8").splitlines()
        listed = [line.split(maxsplit=2) for line in lines if line and not line.startswith("#")]
        for line in listed:
            self.assertTrue(line[0] == "+" or line[0] == "-" and len(line) == 3, line)
        names = {name for _, name, *_ in listed}
        self.assertEqual(len(names), len(listed))
        for path in (services.ROOT / "tests/suite").glob("*.rs"):
            text = path.read_text(encoding="utf-8")
            starts = re.search(r"crate::(server|running|command_line)::", text) and re.search(r"#\[(tokio::)?test", text)
            if starts:
                self.assertIn(path.stem, names)

    def test_what_is_not_run_on_services_is_told(self):
        printed = self.told(["api"], {"one": service(), "two": service(works=False)})
        self.assertIn("are not run without two", printed)
        seen = {}

        def run_with(local, found, data, command, further):
            seen.update(further)
            return 0

        with mock.patch.object(services, "run_with", run_with), self.assertRaises(SystemExit) as ended:
            self.told(["api"], {"one": service()})
        self.assertEqual((ended.exception.code, seen), (0, {"BULKHEAD_TEST_PROFILE": "services"}))


@unittest.skipUnless((services.ROOT / ".local/vendor/redis/bin/redis-server").exists(),
                     "make setup has not brought Redis")
class Redis(PackageCase):
    def test_the_real_one_starts_and_says_its_version(self):
        local = services.ROOT / ".local"
        self.assertTrue(service_redis.program(local).is_there())
        (self.local / "vendor").rmdir()
        (self.local / "vendor").symlink_to(local / "vendor")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            services.run(self.local, {"redis": service_redis}, lambda: None)
        self.assertIn("# Redis 7.0.15 on 127.0.0.1:", printed.getvalue())
        self.assertIn("export BULKHEAD__LIMITS__BACKEND=redis", printed.getvalue())


@unittest.skipUnless((services.ROOT / ".local/vendor/pgbouncer/bin/pgbouncer").exists(),
                     "make setup has not brought PgBouncer")
class PgBouncer(PackageCase):
    def test_the_real_one_starts(self):
        local = services.ROOT / ".local"
        self.assertTrue(service_pgbouncer.program(local).is_there())
        (self.local / "vendor").rmdir()
        (self.local / "vendor").symlink_to(local / "vendor")
        # It gives up root, and then reads its settings.
        self.local.chmod(0o755)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            services.run(self.local, {"pgbouncer": service_pgbouncer}, lambda: None)
        self.assertIn("# PgBouncer 1.18.0 on 127.0.0.1:", printed.getvalue())


if __name__ == "__main__":
    unittest.main()
