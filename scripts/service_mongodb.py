"""Obtains and starts the stand-in for MongoDB: mongo-java-server over a file, from Maven artifacts.

    .local/vendor/mongodb/*.jar         the pinned artifacts
    .local/vendor/mongodb/classes/      the launcher, compiled from tests/support/mongodb/Launcher.java
    .local/cache/maven/                 the same artifacts, where they may be laid by hand

MongoDB itself is in no registry. This stand-in speaks its protocol; it checks no account, has no roles, no replica
sets and no transactions, and whatever is run on it says so. A real server is used instead when MONGODB_URL names one.

**Invariant:** nothing is run whose SHA-256 differs from the pin.
"""

import os
import pathlib
import socket
import struct
import subprocess

from maven import MavenPart
from parts import SetupError, sha256

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "tests/support/mongodb/Launcher.java"
PRODUCT = "mongo-java-server 1.47.0, a stand-in for MongoDB"
# Modules of the suite that need it or a real MongoDB, and those that stop and start it.
TESTS = ("audit_mongodb::",)
OWN_TESTS = ("audit_outages::",)

# Group, artifact, version, SHA-256. The first needs the others.
ARTIFACTS = (
    ("de.bwaldvogel", "mongo-java-server-h2-backend", "1.47.0",
     "58ca6760a25f8a05adfe8a0f7a8a042ca22bd472869028755931507cdce20e71"),
    ("de.bwaldvogel", "mongo-java-server-core", "1.47.0",
     "9a34c9ad6ac6261906295481838256033ec1efc8c93a3e3828e5d47a006b0bd4"),
    ("com.h2database", "h2", "2.3.232",
     "8dae62d22db8982c3dcb3826edb9c727c5d302063a67eef7d63d82de401f07d3"),
    ("io.netty", "netty-buffer", "4.2.2.Final",
     "4820eeb2d3db269b20b30711e3d7d21979664249aaf10fc67f90dee935810747"),
    ("io.netty", "netty-codec", "4.2.2.Final",
     "6a4ea3cedc831a377e20e32da5df4d2a47b954810e941138e3358e313db3a7f9"),
    ("io.netty", "netty-codec-base", "4.2.2.Final",
     "76987614ccb2fda7d3292b69ba5b61351f30e91bf5c7d8fa4b51bc32c9f67456"),
    ("io.netty", "netty-codec-compression", "4.2.2.Final",
     "005734e20aceb5e2c030033f7e042c81ee444497efd110cfca8de445642652ac"),
    ("io.netty", "netty-codec-marshalling", "4.2.2.Final",
     "ae8bb7a077ca02357c922e3abc1acf1bf191d5e2776721d69cbca50a16281096"),
    ("io.netty", "netty-codec-protobuf", "4.2.2.Final",
     "cfe0c7e6e68d83480a639b533eb7edaaf3252cfae8b73d0e362859673a4f9d97"),
    ("io.netty", "netty-common", "4.2.2.Final",
     "5d022f3acad74cb0f195f60213500a4000d1340e5e941edaf1a0e756686b9bae"),
    ("io.netty", "netty-handler", "4.2.2.Final",
     "d4ef582c78125457baa0cfa52992b5fb1bb9172d1a2c03b726e8b26e17d3fe2c"),
    ("io.netty", "netty-resolver", "4.2.2.Final",
     "fa7841ffe2e39d52251814fb8560d6936b10ae7c67453ee50426b83fd5170ba0"),
    ("io.netty", "netty-transport", "4.2.2.Final",
     "116d766a1af4722fe76a4cdaed969644985d44e08ec1337d2dbab697dd109603"),
    ("io.netty", "netty-transport-native-unix-common", "4.2.2.Final",
     "aa8821a7ea2ca47f62740bd1f37d67deb97824cc77e76dde6ae2c439a923fc9d"),
    ("org.slf4j", "slf4j-api", "2.0.17",
     "7b751d952061954d5abfed7181c1f645d336091b679891591d63329c622eb832"),
)


def _file(artifact):
    return f"{artifact[1]}-{artifact[2]}.jar"


def part(local):
    """The jars, of which the first needs the others."""
    pins = {_file(artifact): artifact[3] for artifact in ARTIFACTS}
    tools = {"java": "default-jre-headless", "javac": "default-jdk-headless"}
    return MavenPart(PRODUCT, [ARTIFACTS[0][:3]], pins, local / "cache/maven", tools)


def install(local):
    """Lays the checked artifacts and the compiled launcher below `local`; does nothing when they are there."""
    local = pathlib.Path(local)
    folder, jars = local / "vendor/mongodb", part(local)
    stamp, source = folder / "launcher.sha256", sha256(LAUNCHER)
    is_compiled = stamp.exists() and stamp.read_text() == source
    if is_compiled and jars.are_pinned(folder):
        return
    print(f"mongodb: {PRODUCT}")
    jars.lay(folder)
    compiled = subprocess.run(["javac", "-d", str(folder / "classes"), "-cp", _jars(folder), str(LAUNCHER)],
                              stdin=subprocess.DEVNULL)
    if compiled.returncode != 0:
        raise SetupError(PRODUCT, "its launcher does not compile (the compiler's words are above)",
                         "A JDK of version 17 or later is needed.")
    stamp.write_text(source)


def _jars(folder):
    return os.pathsep.join(str(folder / _file(artifact)) for artifact in ARTIFACTS)


def command(local, folder, port):
    """What starts it over a file in `folder`, on a port of loopback; it prints the port once it answers."""
    installed = pathlib.Path(local) / "vendor/mongodb"
    classes = os.pathsep.join([str(installed / "classes"), _jars(installed)])
    return ["java", "-XX:+UseSerialGC", "-Xmx256m", "-cp", classes, "Launcher",
            str(pathlib.Path(folder) / "mongodb.mv"), str(port)]


def environment(port):
    """What points a server at it."""
    return {"BULKHEAD__AUDIT__BACKEND": "mongodb", "BULKHEAD__AUDIT__MONGODB__URL": f"mongodb://127.0.0.1:{port}/"}


def ready(port):
    """The product and its version, when it answers MongoDB's `ping` on this port; else nothing."""
    ping = b"\x10ping\x00\x01\x00\x00\x00\x02$db\x00\x06\x00\x00\x00admin\x00"
    document = struct.pack("<i", len(ping) + 5) + ping + b"\x00"
    body = struct.pack("<i", 0) + b"\x00" + document
    message = struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(message)
            head = connection.recv(16)
    except OSError:
        return None
    return PRODUCT if len(head) == 16 else None

