"""Redis from Debian, for tests and `make services`. Unpacked below .local/vendor/redis; needs no root."""

import socket

from debian import DebianProgram

PRODUCT = "Redis 7.0.15, as Debian packages it"
REQUIRED = ("bin/redis-server", "bin/redis-cli", "lib/liblzf.so.1", "lib/libjemalloc.so.2", "lib/libatomic.so.1")
# Debian's server is a link to this program, which looks at its own name.
NAMES = {"usr/bin/redis-check-rdb": "bin/redis-server", "usr/bin/redis-cli": "bin/redis-cli",
         "usr/share/doc/redis-tools/copyright": "LICENSE"}


def program(local):
    return DebianProgram("redis", local, NAMES, REQUIRED)


def install(local):
    """Brings Redis below `local`, unless it is there."""
    program(local).require()


def command(local, folder, port):
    """What starts it on a port of loopback, keeping nothing on disk."""
    vendor = local / "vendor/redis"
    return ["env", f"LD_LIBRARY_PATH={vendor / 'lib'}", str(vendor / "bin/redis-server"),
            "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder),
            "--save", "", "--appendonly", "no", "--daemonize", "no"]


def environment(port):
    """What points a server at it."""
    return {"BULKHEAD__LIMITS__BACKEND": "redis", "BULKHEAD__CACHE__BACKEND": "redis",
            "BULKHEAD__REDIS__URL": f"redis://127.0.0.1:{port}"}


def ready(port):
    """Product and version of what answers at this port; None while nothing does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\n")
            answer = b""
            while b"redis_version:" not in answer or not answer.rpartition(b"redis_version:")[2].count(b"\r\n"):
                received = connection.recv(4096)
                if not received:
                    return None
                answer += received
    except OSError:
        return None
    return f"Redis {answer.partition(b'redis_version:')[2].split()[0].decode()}"
