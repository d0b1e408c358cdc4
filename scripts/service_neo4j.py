"""Obtains and starts the real Neo4j Community, from Maven artifacts.

    .local/vendor/neo4j/*.jar           the pinned artifacts
    .local/cache/neo4j/                 the same artifacts, where they may be laid by hand
    scripts/service_neo4j.sha256        their pins

It is a program of its own under the GNU GPL, started as a process; nothing of it is linked with Bulkhead or kept in its
tree.

**Invariant:** nothing is run whose SHA-256 differs from the pin.
"""

import pathlib
import shlex
import socket

from maven import MavenPart
from parts import sha256

HERE = pathlib.Path(__file__).resolve().parent
VERSION = "5.26.12"
PRODUCT = f"Neo4j Community {VERSION}"
# Of the trial server on loopback, which keeps nothing that is worth a secret.
PASSWORD = "for-trials-on-loopback"

ARTIFACTS = (("org.neo4j.app", "neo4j-server", VERSION), ("org.neo4j", "neo4j", VERSION))

# Bolt alone, on loopback; little memory; nothing is reported home.
CONFIGURATION = """server.bolt.listen_address=127.0.0.1:{port}
server.http.enabled=false
server.https.enabled=false
server.memory.heap.initial_size=128m
server.memory.heap.max_size=512m
server.memory.pagecache.size=64m
db.tx_log.preallocate=false
db.tx_log.rotation.retention_policy=keep_none
dbms.usage_report.enabled=false
"""

# What Neo4j's own start script opens of Java.
OPENED = ("java.base/java.nio", "java.base/java.io", "java.base/sun.nio.ch", "java.base/java.util.concurrent")


def pins():
    """The SHA-256 of every artifact, by file name."""
    lines = (HERE / "service_neo4j.sha256").read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def install(local):
    """Lays the checked artifacts below `local`; does nothing when they are there."""
    local, stamp = pathlib.Path(local), sha256(HERE / "service_neo4j.sha256")
    folder = local / "vendor/neo4j"
    if (folder / "checked").exists() and (folder / "checked").read_text() == stamp:
        return
    print(f"neo4j: {PRODUCT}")
    MavenPart(PRODUCT, ARTIFACTS, pins(), local / "cache/neo4j", {"java": "default-jre-headless"}).lay(folder)
    (folder / "checked").write_text(stamp)


def command(local, folder, port):
    """What starts it over a folder, on a port of loopback. The password is set before its first start."""
    folder, jars = pathlib.Path(folder).absolute(), pathlib.Path(local).absolute() / "vendor/neo4j" / "*"
    conf = folder / "conf"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / "neo4j.conf").write_text(CONFIGURATION.format(port=port))
    java = ["java", "-XX:+UseSerialGC", "-cp", str(jars)]
    opened = [f"--add-opens={module}=ALL-UNNAMED" for module in OPENED]
    first = [*java, "org.neo4j.cli.AdminTool", "dbms", "set-initial-password", PASSWORD]
    server = [*java, "-Xmx512m", *opened, "org.neo4j.server.CommunityEntryPoint", f"--home-dir={folder}",
              f"--config-dir={conf}"]
    return ["env", f"NEO4J_HOME={folder}", f"NEO4J_CONF={conf}", "sh", "-c",
            f"{shlex.join(first)} && exec {shlex.join(server)}"]


def environment(port):
    """What points a server at it."""
    return {"BULKHEAD__GRAPH__BACKEND": "neo4j", "BULKHEAD__GRAPH__NEO4J__URL": f"bolt://127.0.0.1:{port}",
            "BULKHEAD__GRAPH__NEO4J__PASSWORD": PASSWORD}


def ready(port):
    """Product and version, when something at this port speaks Bolt as it does; else nothing."""
    offer = b"\x60\x60\xb0\x17" + b"\x00\x00\x04\x04" + bytes(12)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(offer)
            chosen = connection.recv(4)
    except OSError:
        return None
    return PRODUCT if chosen == b"\x00\x00\x04\x04" else None
