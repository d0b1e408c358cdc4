"""The deployment files say what they promise: pinned images, no way in but one, no secret in the open, settings that are
there. No container engine is needed, and none is used: docs/deployment.md says what that leaves open.
"""

import contextlib
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile
import unittest

import plain_yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
# A registry's tag that names one version: three numbers, or the two of a program and its PostgreSQL.
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?([.-][a-z0-9.-]+)?(@sha256:[0-9a-f]{64})?")
# What cannot be read-only, with the reason in compose.yaml.
WRITES_ITSELF = {"neo4j"}


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def settings():
    """Every setting of the server by its full name, those that are commented out among them."""
    found, section = set(), ""
    for line in read("src/config/default.toml").splitlines():
        if match := re.fullmatch(r"\[([\w.]+)\]", line):
            section = match[1] + "."
        elif match := re.match(r"(?:# )?(\w+) = ", line):
            found.add(section + match[1])
    return found


def variables(text):
    """Names and values of an environment file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


class Yaml(unittest.TestCase):
    def test_what_is_read_is_what_it_says(self):
        text = """
# a comment
a: one two   # another
b:
- x
- "y: #1"
c: {d: [1, "2, 3", {}], e: f.g}
h:
  i: >-
    first
    second
  "j k":
    - l: m
      n:
        o: "p"
    - [q, r]
"""
        self.assertEqual(plain_yaml.load(text), {
            "a": "one two", "b": ["x", "y: #1"], "c": {"d": ["1", "2, 3", {}], "e": "f.g"},
            "h": {"i": "first second", "j k": [{"l": "m", "n": {"o": "p"}}, ["q", "r"]]}})

    def test_what_it_does_not_know_is_refused(self):
        for text in ("a: 1\na: 2", "a: |\n  b", "a: &b c", "a: 'b'", "a: [b", "a: [b] c", "- a\nb", "a:\n  b: 1\n c: 2"):
            with self.subTest(text=text), self.assertRaises(plain_yaml.PlainYamlError):
                plain_yaml.load(text)

    def test_a_full_parser_reads_the_same(self):
        try:
            import yaml
        except ImportError:
            self.skipTest("PyYAML is not on this machine")
        for path in ("docker/compose.yaml", "deploy/envoy.yaml"):
            self.assertEqual(plain_yaml.load(read(path)), yaml.load(read(path), yaml.BaseLoader), path)


class Compose(unittest.TestCase):
    def setUp(self):
        self.compose = plain_yaml.load(read("docker/compose.yaml"))
        self.services = self.compose["services"]

    def test_the_server_and_every_store_are_there(self):
        self.assertEqual(set(self.services), {"server", "postgres", "qdrant", "neo4j", "mongodb", "redis"})

    def test_every_image_is_pinned(self):
        for name, service in self.services.items():
            self.assertRegex(service["image"], PINNED, name)
            self.assertIsNotNone(PINNED.fullmatch(service["image"]), name)
        for image in re.findall(r"^FROM (\S+)", read("docker/Dockerfile"), re.M):
            self.assertIsNotNone(PINNED.fullmatch(image), image)

    def test_only_the_server_can_be_reached_and_only_from_this_machine(self):
        networks = self.compose["networks"]
        inner = {name for name, network in networks.items() if network and network.get("internal") == "true"}
        for name, service in self.services.items():
            if name == "server":
                self.assertTrue(all(port.startswith("127.0.0.1:") for port in service["ports"]))
                continue
            self.assertNotIn("ports", service, name)
            self.assertEqual(set(service["networks"]) - inner, set(), name)
        for service in self.services.values():
            self.assertFalse({"privileged", "network_mode", "pid", "devices"} & set(service))

    def test_each_looks_at_itself_and_may_do_no_more_than_it_must(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                self.assertTrue(service["healthcheck"]["test"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertIn("no-new-privileges:true", service["security_opt"])
                self.assertEqual(service.get("read_only") == "true", name not in WRITES_ITSELF)
        for name, condition in self.services["server"]["depends_on"].items():
            self.assertEqual(condition, {"condition": "service_healthy"}, name)

    def test_secrets_come_from_files_that_the_script_makes_and_each_container_has_its_own_only(self):
        declared = self.compose["secrets"]
        used = {name: set(service["secrets"]) for name, service in self.services.items()}
        self.assertEqual(set().union(*used.values()), set(declared))
        with made() as folder:
            files = {path.name for path in folder.iterdir()}
            for name, secret in declared.items():
                self.assertIn(pathlib.PurePath(secret["file"]).name, files, name)
        for name, service in self.services.items():
            text = str(service)
            named = set(re.findall(r"/run/secrets/([\w.-]*\w)", text))
            if name == "server":
                named |= set(re.findall(r"/run/secrets/([\w.-]*\w)", read("docker/server.env")))
            # Neo4j is told the folder, and the names in it apart.
            self.assertEqual(named - used[name], set(), name)
            for variable, value in service.get("environment", {}).items():
                if re.search(r"PASSWORD|KEY|SECRET|AUTH", variable.upper()):
                    self.assertTrue(value.startswith("/run/secrets/") or "__" in variable, f"{name}: {variable}")

    def test_volumes_and_networks_are_declared(self):
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                there = (DOCKER / source).exists() if source.startswith(".") else source in self.compose["volumes"]
                self.assertTrue(there, f"{name}: {volume}")
            for network in service["networks"]:
                self.assertIn(network, self.compose["networks"], name)


class Server(unittest.TestCase):
    def test_every_variable_is_a_setting(self):
        known = settings()
        self.assertIn("vectors.qdrant.api_key_file", known)
        given = {**variables(read("docker/server.env")),
                 **plain_yaml.load(read("docker/compose.yaml"))["services"]["server"]["environment"],
                 **dict(re.findall(r"(BULKHEAD__\w+)=(\S+)", read("docker/Dockerfile")))}
        for variable in given:
            if variable.startswith("BULKHEAD__"):
                self.assertIn(variable[len("BULKHEAD__"):].lower().replace("__", "."), known, variable)
            else:
                self.assertIn(variable, ("SSL_CERT_FILE", "SSL_CERT_DIR"))

    def test_the_public_authorities_are_trusted_beside_the_deployments_own(self):
        self.assertEqual(variables(read("docker/server.env"))["SSL_CERT_DIR"], "/etc/ssl/certs")
        self.assertIn("ca-certificates", read("docker/Dockerfile").split("\nFROM ")[-1])

    def test_no_secret_stands_in_the_open(self):
        for variable, value in variables(read("docker/server.env")).items():
            self.assertNotIn("@", value, f"{variable}: credentials in an address")
            if re.search(r"PASSWORD|KEY|SECRET", variable):
                self.assertTrue(variable.endswith("_FILE") and value.startswith("/run/secrets/"), variable)

    def test_the_image_runs_as_nobody_and_holds_no_build(self):
        stages = read("docker/Dockerfile").split("\nFROM ")
        self.assertGreater(len(stages), 2)
        self.assertIn("\nUSER 10001:10001\n", stages[-1])
        self.assertNotIn("cargo", stages[-1])
        ignored = read(".dockerignore").splitlines()
        for folder in (".git", ".local", "target", "docker/secrets"):
            self.assertIn(folder, ignored)


@contextlib.contextmanager
def made():
    """A folder with secrets."""
    if not shutil.which("openssl"):
        raise unittest.SkipTest("openssl is not on this machine")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(DOCKER / "secrets.sh"), folder], check=True, stdout=subprocess.DEVNULL,
                       stdin=subprocess.DEVNULL)
        yield pathlib.Path(folder)


class Secrets(unittest.TestCase):
    def test_certificates_hold_passwords_differ_and_nothing_is_made_twice(self):
        with made() as folder:
            self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o700)
            self.assertEqual(stat.S_IMODE((folder / "ca-key.pem").stat().st_mode), 0o600)
            for service in ("postgres", "qdrant", "mongodb", "redis", "neo4j"):
                verify = ["openssl", "verify", "-CAfile", folder / "ca.pem", "-verify_hostname", service,
                          folder / f"{service}.pem"]
                self.assertIn(b": OK", subprocess.run(verify, check=True, stdout=subprocess.PIPE).stdout)
            secrets = [path.read_text() for path in folder.glob("*-password")] + [(folder / "qdrant-api-key").read_text()]
            self.assertEqual(len(set(secrets)), len(secrets))
            self.assertTrue(all(len(secret.strip()) == 48 for secret in secrets))
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            subprocess.run([str(DOCKER / "secrets.sh"), str(folder)], check=True, stdout=subprocess.DEVNULL)
            self.assertEqual({path.name: path.read_bytes() for path in folder.iterdir()}, before)

    def test_the_rights_in_redis_are_those_that_are_documented(self):
        documented = re.search(r"ACL SETUSER bulkhead on >password (.*)", read("docs/services.md"))[1]
        with made() as folder:
            rule = re.search(r"user bulkhead on >\w+ resetchannels (.*)", (folder / "redis.acl").read_text())[1]
        self.assertEqual(rule, documented)

    def test_a_full_redis_displaces_what_is_used_least_and_not_the_counters_first(self):
        words = plain_yaml.load(read("docker/compose.yaml"))["services"]["redis"]["command"]
        policy = words[words.index("--maxmemory-policy") + 1]
        self.assertEqual(policy, "allkeys-lru")
        self.assertIn(f"with `{policy}`", read("docs/services.md"))

    def test_the_accounts_in_mongodb_are_those_that_are_documented(self):
        script = read("docker/mongodb-accounts.js")
        for index in re.findall(r"db\.(audit_event\.createIndex\(.*\))", read("docs/services.md")):
            self.assertIn(index, script)


class Proxies(unittest.TestCase):
    def test_envoy_and_nginx_pass_the_name_on_and_nothing_of_the_callers_own(self):
        nginx = read("deploy/nginx.conf")
        for line in ("proxy_set_header Host $host;", 'proxy_set_header X-Forwarded-Host "";',
                     "proxy_set_header X-Forwarded-For $remote_addr;", "ssl_reject_handshake on;"):
            self.assertIn(line, nginx)
        listener = plain_yaml.load(read("deploy/envoy.yaml"))["static_resources"]["listeners"][0]
        http = listener["filter_chains"][0]["filters"][0]["typed_config"]
        self.assertEqual((http["use_remote_address"], http["xff_num_trusted_hops"]), ("true", "0"))
        self.assertIn("x-forwarded-host", http["route_config"]["request_headers_to_remove"])
        self.assertEqual([host["domains"] for host in http["route_config"]["virtual_hosts"]], [["*.example.com"]])


if __name__ == "__main__":
    unittest.main()
