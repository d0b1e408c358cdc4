"""The server as a child process, and its REST API seen by one caller. Used by `demo.py`; standard library only.

**Invariant:** the server is ended only by its own process handle, and no credential is written anywhere here.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import textwrap
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0  # the first start also creates the database
STOP_SECONDS = 30.0  # a server that has not stopped by then is killed
BUSY_SECONDS = 60.0  # how long 429 and 503 are waited out
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 20


class DemoError(Exception):
    """Something a person must look at; the text says what and, where known, what to do."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. Not an `Exception`, so that no retry swallows it."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


def say(text=""):
    print(text, flush=True)


def pretty(path):
    """The path as seen from the current folder, when it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def address(bind):
    """Where a client on this machine reaches a server bound to `host:port`."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise DemoError(f"BULKHEAD__HTTP__ADDRESS is {bind!r}; the demo needs host:port with a fixed port.")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)


class Server:
    """The server as a child process in a process group of its own, so that a Ctrl-C reaches it once, through us."""

    def __init__(self, program, host, port, log):
        self.program, self.host, self.port, self.log = program, host, port, log
        self.child = None

    def start(self):
        """Starts the server and returns when it answers `/health`."""
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.settimeout(1)
            if probe.connect_ex((self.host, self.port)) == 0:
                raise DemoError(
                    f"Port {self.port} on {self.host} is in use, perhaps by an earlier `make run`. Stop that program, "
                    f"or choose another port: BULKHEAD__HTTP__ADDRESS=127.0.0.1:{self.port + 1} make run"
                )
        if self.log.exists():
            os.replace(self.log, f"{self.log}.1")
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self.child = subprocess.Popen(
                [str(self.program), "serve"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        except OSError as error:
            reason = f"{pretty(self.program)} cannot be started: {error.strerror}. Was it built?"
            raise DemoError(reason) from error
        finally:
            os.close(descriptor)
        deadline = time.monotonic() + START_SECONDS
        api = Api(self, None)
        while True:
            self.require_alive()
            try:
                if api.request("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass  # not listening yet
            if time.monotonic() > deadline:
                raise DemoError(f"The server did not answer within {START_SECONDS:.0f} s.\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def require_alive(self):
        if self.child and self.child.poll() is not None:
            raise DemoError(f"The server stopped ({ending(self.child.returncode)}).\n{self.log_tail()}")

    def log_tail(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            lines = deque(file, LOG_TAIL_LINES)
        if not lines:
            return f"{pretty(self.log)} is empty."
        return f"The last lines of {pretty(self.log)}:\n" + textwrap.indent("".join(lines).rstrip(), "  ")

    def stop(self, signum):
        """Passes the signal on, waits for the clean exit and returns the exit code."""
        if self.child is None:
            return 128 + signum
        if self.child.poll() is None:
            # A closed terminal is a reason to stop cleanly, too; servers tend to read SIGHUP as "reload".
            self.child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)
        try:
            self.child.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, Interrupted):
            say("The server is killed: it did not stop in time or a second signal came.")
            self.child.kill()
            self.child.wait()
        return exit_code(self.child.returncode)


def exit_code(returncode):
    """A child's return code as a shell would report it."""
    return returncode if returncode >= 0 else 128 - returncode


def ending(returncode):
    return f"exit code {returncode}" if returncode >= 0 else f"killed by signal {-returncode}"


class Api:
    """The REST API with one tenant's credential, or with none."""

    def __init__(self, server, key):
        self.server, self.key = server, key

    def request(self, method, path, body=None, content_type="application/json"):
        """One call. Returns (status, decoded JSON or text, headers)."""
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=60)
        headers = {"Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        if body is not None:
            headers["Content-Type"] = content_type
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            raw = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"not an HTTP answer: {error!r}") from error
        finally:
            connection.close()
        try:
            return response.status, json.loads(raw), response.headers
        except ValueError:
            return response.status, raw.decode("utf-8", "replace"), response.headers

    def require(self, method, path, body=None, content_type="application/json", also=()):
        """One call that must succeed (2xx, or a status in `also`); waits while the server is busy."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                status, answer, headers = self.request(method, path, body, content_type)
            except OSError as error:
                time.sleep(POLL_SECONDS)
                self.server.require_alive()
                raise DemoError(f"{method} {path} failed: {error}.\n{self.server.log_tail()}") from error
            if 200 <= status < 300 or status in also:
                return status, answer
            if status not in (429, 503) or time.monotonic() > deadline:
                raise DemoError(f"{method} {path} was answered with {status}: {describe(answer)}")
            self.server.require_alive()
            after = headers.get("Retry-After", "1")
            time.sleep(min(float(after) if after.isdigit() else 1.0, 5.0))


def describe(answer):
    """The human part of a problem document."""
    if isinstance(answer, dict):
        return str(answer.get("detail") or answer.get("title") or answer.get("message") or answer)
    return str(answer)[:500]
