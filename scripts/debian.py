"""A part of the set-up that comes from Debian's packages, unpacked without root.

apt fetches them from wherever this machine's apt is configured to; nothing is installed into the
system and no script of a package is run. A package may be pinned in several versions, because a
mirror keeps a security update only until the next one.

**Invariant:** nothing is unpacked whose SHA-256 differs from every pin.
"""

import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import tarfile

from parts import Part, SetupError, sha256


HERE = pathlib.Path(__file__).resolve().parent


class DebianPart(Part):
    """One entry of `debian` in parts.json for this machine, with its places below `local`."""

    def __init__(self, entry, local, folder, machine=None):
        machine = machine or platform.machine()
        self.name, self.holds = entry["name"], entry["holds"]
        self.packages = entry["packages"].get(machine)
        if self.packages is None:
            raise SetupError(
                self.holds,
                f"it is pinned for {', '.join(entry['packages'])}, not for {machine}",
                "Use a machine of one of these kinds.")
        self.cache = local / "cache"
        self.link = local / folder / self.name
        pins = json.dumps([self.packages, entry["recipe"]], sort_keys=True)
        self.folder = self.link.with_name(f".{self.name}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}")

    def install(self, wanted):
        """Unpacks the files for which `wanted(path)` gives a relative path, and puts them into place in one step."""
        print(f"{self.name}: {self.holds}")
        archives = [self.archive(name, pins) for name, pins in self.packages.items()]

        def fill(folder):
            for archive in archives:
                unpack(archive, folder, wanted)

        self.place(fill)

    def archive(self, name, pins):
        """The path of a checked package: from the cache, else downloaded."""
        for pin in pins:
            path = self.cache / pin["file"]
            if path.exists() and sha256(path) == pin["sha256"]:
                return path
        fresh = self.cache / "download"
        words = self._download(fresh, name, pins)
        for found in fresh.glob("*.deb"):
            actual = sha256(found)
            for pin in pins:
                if pin["sha256"] == actual:
                    os.replace(found, self.cache / pin["file"])
                    shutil.rmtree(fresh)
                    return self.cache / pin["file"]
            words = f"{found.name} has the SHA-256 {actual}, which is not pinned"
        raise SetupError(
            self.holds, f"apt could not bring the package {name}: {words}",
            f"Check apt's sources, or lay one of {', '.join(pin['file'] for pin in pins)} into {self.cache} "
            "and run this again.")

    @staticmethod
    def _download(folder, name, pins):
        """Lets apt bring one of the versions into the folder; returns its last words if none came."""
        if not shutil.which("apt-get"):
            return "this machine has no apt"
        words = ""
        for refreshed in (False, True):
            if refreshed:
                # Only root may; where the lists are old or were never fetched, it helps.
                subprocess.run(["apt-get", "update", "-qq"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for pin in pins:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                done = subprocess.run(["apt-get", "download", "-qq", f"{name}={pin['version']}"], cwd=folder,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, universal_newlines=True)
                if done.returncode == 0 and list(folder.glob("*.deb")):
                    return ""
                words = done.stderr.strip().splitlines()[-1:] or ["no words"]
                words = words[0]
        return words


class DebianProgram(DebianPart):
    """A program for tests, below .local/vendor, with the shared libraries that its packages hold.

    `places` says where further files of the packages go, and `required` what must be there when it is installed.
    """

    def __init__(self, name, local, places, required):
        entries = json.loads((HERE / "parts.json").read_text())["debian"]
        super().__init__(next(entry for entry in entries if entry["name"] == name), local, "vendor")
        self.places, self.required = places, required

    def wanted(self, path):
        """Where a file of a package goes; None for the others."""
        if path.startswith("usr/lib/") and ".so" in path:
            return f"lib/{path.rsplit('/', 1)[1]}"
        return self.places.get(path)

    def is_there(self):
        return self.is_installed("", self.required)

    def require(self):
        """Brings it, unless it is there."""
        if not self.is_there():
            self.install(self.wanted)


def unpack(archive, folder, wanted):
    """Writes a package's files, and links between files of one folder, for which `wanted(path)` gives a path."""
    for member in _contents(archive):
        with tarfile.open(fileobj=member, mode="r:*") as files:
            for info in files:
                target = wanted(info.name.lstrip("./"))
                if target is None or not (info.isfile() or info.issym()):
                    continue
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                if info.isfile():
                    with files.extractfile(info) as source, open(path, "wb") as sink:
                        shutil.copyfileobj(source, sink)
                elif "/" not in info.linkname:
                    path.symlink_to(info.linkname)


def _contents(archive):
    """The archive of files inside a package, which is an `ar` archive: headers of 60 bytes, even offsets."""
    with open(archive, "rb") as package:
        if package.read(8) != b"!<arch>\n":
            raise SetupError(pathlib.Path(archive).name, "it is no Debian package", "Fetch it again.")
        while header := package.read(60):
            name, size = header[:16].decode().strip(" /"), int(header[48:58])
            content = package.read(size + size % 2)[:size]
            if name.startswith("data.tar"):
                yield io.BytesIO(content)
