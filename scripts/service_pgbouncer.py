"""PgBouncer from Debian, for tests. Unpacked below .local/vendor/pgbouncer; needs no root.

It stands between a server and a PostgreSQL of one's own, so `make services` does not start it: deploy/pgbouncer.ini is
the file for that, and the tests use it.
"""

import os
import socket

from debian import DebianProgram

PRODUCT = "PgBouncer 1.18.0, as Debian packages it"
REQUIRED = ("bin/pgbouncer", "lib/libevent-2.1.so.7", "lib/libcares.so.2")
NAMES = {"usr/sbin/pgbouncer": "bin/pgbouncer", "usr/share/doc/pgbouncer/copyright": "LICENSE"}
# Of no use by itself.
STARTS_ALONE = False
# In the protocol of PostgreSQL: whether TLS is spoken, which is answered before anybody is known.
TLS_WANTED = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


def program(local):
    return DebianProgram("pgbouncer", local, NAMES, REQUIRED)


def install(local):
    """Brings PgBouncer below `local`, unless it is there."""
    program(local).require()


def command(local, folder, port):
    """What starts it on a port of loopback, with no database behind it."""
    settings = folder / "pgbouncer.ini"
    settings.write_text(f"[databases]\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
                        "unix_socket_dir =\npool_mode = transaction\n")
    vendor = local / "vendor/pgbouncer"
    # It refuses to run as root.
    user = ["--user=nobody"] if os.geteuid() == 0 else []
    return ["env", f"LD_LIBRARY_PATH={vendor / 'lib'}", str(vendor / "bin/pgbouncer"), *user, str(settings)]


def environment(port):
    """What points a server at it."""
    return {"BULKHEAD__DATABASE__POOLER__URL": f"postgres://127.0.0.1:{port}"}


def ready(port):
    """The product, once something answers at this port; None while nothing does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(TLS_WANTED)
            return PRODUCT.partition(",")[0] if connection.recv(1) in (b"N", b"S") else None
    except OSError:
        return None
