#!/usr/bin/env python3
"""The services that Bulkhead can use beside its own stores, for trying it on them: `make services`.

Starts each that is installed on a port of its own on loopback, prints the environment that points
a server at them, and ends them with Ctrl-C. `services.py install` obtains them, as `make setup`
does; one that cannot be had is told, and fails only where BULKHEAD_REQUIRE names it.

`services.py api` runs the tests of whole servers on all of them, for `make test`: the modules with a plus in
tests/suite/on_services.txt. It wants every service; where one is missing and BULKHEAD_REQUIRE does not name it, nothing
is run, and `services.py told` says so.

`services.py demo` runs the demo of `make run` on all of them, and keeps what they hold in .local/services/demo for the
next time. `services.py with COMMAND...` runs a command with that environment, over services that hold nothing yet. Both
want every service, and end as what they ran did.

A service is a file service_<name>.py beside this one, with install(local), command(local, folder,
port), ready(port) and environment(port), and build() where it is compiled from this tree. One that
stands in front of another is for tests, and is not started here: STARTS_ALONE is False.

For `make test`: `services.py skips` prints what keeps `cargo test` from running the tests of a
service that is not there, and `services.py told` what each service's tests ran against, or why not.
`services.py obtained` prints the names of those that are there; `services.py complete` ends with 3 when one is not.
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
import tempfile
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


def started(found, missing):
    """Those that are there and are of use by themselves."""
    return {name: service for name, service in found.items()
            if name not in missing and getattr(service, "STARTS_ALONE", True)}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Running:
    """A service that was started."""

    def __init__(self, name, service, local, folder):
        self.name, self.service, self.port = name, service, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder.with_name(f"{name}.log")  # not in the folder, which is the service's own
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
        words = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        raise SetupError(self.name, "it does not answer", "\n".join(["Its last words:", *words]))

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running_in(local, found, data):
    """The services, each with its data in a folder of its name in `data`; ended in the end."""
    running = []
    try:
        for service in found.values():
            getattr(service, "build", lambda: None)()
        for name, service in found.items():
            running.append(Running(name, service, local, data / name))
        for one in running:
            print(f"# {one.wait()} on 127.0.0.1:{one.port}")
        yield running
    finally:
        for one in reversed(running):
            one.stop()


def environment(running):
    """What points a server at them."""
    return {variable: str(value) for one in running for variable, value in one.service.environment(one.port).items()}


def run(local, found, until):
    """Runs the services, which hold nothing, until `until()` returns."""
    data = local / "services/fresh"
    shutil.rmtree(data, ignore_errors=True)
    with running_in(local, found, data) as running:
        for variable, value in environment(running).items():
            print(f"export {variable}={value}")
        print("# Ctrl-C ends them", flush=True)
        until()


def run_with(local, found, data, command, further=()):
    """Runs a command with the environment of the services; its exit code. A signal reaches it once, through this."""
    with running_in(local, found, data) as running:
        variables = {**environment(running), **dict(further)}
        child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, start_new_session=True)
        before = {number: signal.signal(number, lambda number, _: child.send_signal(number))
                  for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def api_command(arguments):
    """What runs the tests of whole servers on services."""
    lines = (HERE.parent / "tests/suite/on_services.txt").read_text(encoding="utf-8").splitlines()
    modules = [line.split()[1] for line in lines if line.startswith("+ ")]
    # Single tests of these modules.
    skips = [line.split()[1] for line in lines if line.startswith("- ") and "::" in line.split()[1]]
    cargo = [os.environ.get("CARGO", "cargo"), "test", "--release", "--features", "laboratory", "--test", "suite"]
    skipped = [word for test in skips for word in ("--skip", test)]
    return [*cargo, *arguments, "--", *skipped, *(f"{module}::" for module in modules)]


def api(local, found, arguments):
    """Runs those tests; their exit code."""
    with tempfile.TemporaryDirectory(prefix="services-") as folder:
        return run_with(local, found, pathlib.Path(folder), api_command(arguments), {"BULKHEAD_TEST_PROFILE": "services"})


def demo(local, found):
    """The demo of `make run` on the services. They go on with what they held the last time."""
    data = local / "services/demo"
    folder = {"BULKHEAD__DATA_DIR": str(data / "data")}
    print(f"# data in {data}; for the operators' commands:")
    print("\n".join(f"export {variable}={value}" for variable, value in folder.items()), flush=True)
    return run_with(local, found, data, [sys.executable, str(HERE / "demo.py")], folder)


@contextlib.contextmanager
def aside():
    """What is printed meanwhile, also by programs that are run, goes to standard error."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def interrupted(*_):
    raise KeyboardInterrupt


def main(arguments):
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, interrupted)
    local, found = ROOT / ".local", services()
    try:
        answers_a_program = arguments in (["skips"], ["obtained"])
        with only_one(local), aside() if answers_a_program else contextlib.nullcontext():
            missing = install(local, found)
        alone = started(found, missing)
        absent = sorted(set(missing).intersection(started(found, ())))  # of what a server is pointed at
        all_of_them = arguments[:1] in (["demo"], ["with"])
        needed = absent if all_of_them else sorted(required().intersection(missing))
        if needed:
            sys.exit(f"required, but not there: {', '.join(needed)}")
        if arguments == ["obtained"]:
            print(",".join(name for name in found if name not in missing))
        elif arguments == ["complete"]:
            sys.exit(3 if missing else 0)  # install said which, and why
        elif arguments == ["skips"]:
            tests = [test for name in missing for test in skipped(name, found[name])]
            print(*(word for test in tests for word in ("--skip", test)))
        elif arguments == ["told"]:
            for name, service in found.items():
                print(f"service {name}: {tested(name, service, missing.get(name))}")
            profile = f"not run without {', '.join(absent)}" if absent else "run"
            print(f"the API's tests on all services: {profile}")
        elif arguments[:1] == ["api"]:
            if absent:
                print(f"the API's tests on all services are not run without {', '.join(absent)}")
            else:
                sys.exit(api(local, alone, arguments[1:]))
        elif arguments == ["demo"]:
            sys.exit(demo(local, alone))
        elif arguments[:1] == ["with"]:
            with tempfile.TemporaryDirectory(prefix="services-") as folder:
                sys.exit(run_with(local, alone, pathlib.Path(folder), arguments[1:]))
        elif arguments != ["install"]:
            run(local, alone, signal.pause)
    except SetupError as error:
        sys.exit(f"\nstopped at {error}\n{error.remedy}")
    except KeyboardInterrupt:
        print("\nended")


if __name__ == "__main__":
    main(sys.argv[1:])
