#!/usr/bin/env python3
"""The services that Bulkhead can use beside its own stores, for trying it on them: `make services`.

Starts each that is installed on a port of its own on loopback, prints the environment that points
a server at them, and ends them with Ctrl-C. `services.py install` obtains them, as `make setup`
does; one that cannot be had is told, and fails only where BULKHEAD_REQUIRE names it.

A service is a file service_<name>.py beside this one, with install(local), command(local, folder,
port), ready(port) and environment(port), and build() where it is compiled from this tree.

For `make test`: `services.py skips` prints what keeps `cargo test` from running the tests of a
service that is not there, and `services.py told` what each service's tests ran against, or why not.
"""

import contextlib
import importlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

from parts import SetupError
from setup import ROOT, only_one

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE = 60  # seconds until a service must answer


def services():
    """Each service's name and module, by name."""
    names = sorted(path.stem for path in HERE.glob("service_*.py"))
    return {name[len("service_"):]: importlib.import_module(name) for name in names}


def required():
    return {name.strip() for name in os.environ.get("BULKHEAD_REQUIRE", "").split(",")}


def install(local, found):
    """Obtains every service; returns why, by name, for those that could not be had."""
    missing = {}
    for name, service in found.items():
        try:
            service.install(local)
        except (SetupError, OSError) as error:
            print(f"{name} is not there: {error}\n{getattr(error, 'remedy', '')}".rstrip())
            missing[name] = str(error)
    return missing


def named(name):
    """Whether the environment names a real server to use in its place."""
    return bool(os.environ.get(f"{name.upper()}_URL"))


def tested(name, service, why):
    """What its tests ran against; `why` it is not there, if it is not."""
    real = f"the server that {name.upper()}_URL names"
    if why:
        return f"{real}; what stops it was not run: {why}" if named(name) else f"its tests were not run: {why}"
    return f"{real}; what stops it, {service.PRODUCT}" if named(name) else service.PRODUCT


def skipped(name, service):
    """Modules of the suite that cannot run without it."""
    return getattr(service, "OWN_TESTS", ()) + (() if named(name) else getattr(service, "TESTS", ()))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Running:
    """A service that was started."""

    def __init__(self, name, service, local):
        self.name, self.service, self.port = name, service, free_port()
        folder = local / "services" / name  # its data; what it is made of is in .local/vendor
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.log = folder / "output.log"
        with open(self.log, "wb") as log:
            # A session of its own: the Ctrl-C that ends this program is passed on in order.
            self.process = subprocess.Popen(service.command(local, folder, self.port), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self):
        """Product and version, once it answers."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            product = self.service.ready(self.port)
            if product:
                return product
            time.sleep(0.05)
        raise SetupError(self.name, "it does not answer", f"See {self.log}.")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def run(local, found, until):
    """Runs the services until `until()` returns."""
    running = []
    try:
        for service in found.values():
            getattr(service, "build", lambda: None)()
        for name, service in found.items():
            running.append(Running(name, service, local))
        for one in running:
            print(f"# {one.wait()} on 127.0.0.1:{one.port}")
        for one in running:
            for variable, value in one.service.environment(one.port).items():
                print(f"export {variable}={value}")
        print("# Ctrl-C ends them", flush=True)
        until()
    finally:
        for one in reversed(running):
            one.stop()


def interrupted(*_):
    raise KeyboardInterrupt


def main(arguments):
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, interrupted)
    local, found = ROOT / ".local", services()
    try:
        with only_one(local), contextlib.redirect_stdout(sys.stderr if arguments == ["skips"] else sys.stdout):
            missing = install(local, found)
        needed = sorted(required().intersection(missing))
        if needed:
            sys.exit(f"required, but not there: {', '.join(needed)}")
        if arguments == ["skips"]:
            tests = [test for name in missing for test in skipped(name, found[name])]
            print(*(word for test in tests for word in ("--skip", test)))
        elif arguments == ["told"]:
            for name, service in found.items():
                print(f"service {name}: {tested(name, service, missing.get(name))}")
        elif arguments != ["install"]:
            run(local, {name: service for name, service in found.items() if name not in missing}, signal.pause)
    except SetupError as error:
        sys.exit(f"\nstopped at {error}\n{error.remedy}")
    except KeyboardInterrupt:
        print("\nended")


if __name__ == "__main__":
    main(sys.argv[1:])
