"""A part of the set-up that comes from Maven: the jars that some artifacts need, for programs that tests start.

**Invariant:** nothing is laid in place whose SHA-256 differs from the pin, and no registry is named: Maven is used as
the machine has it configured.
"""

import os
import shutil
import subprocess

from parts import SetupError, sha256

POM = """<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>{name}</artifactId>
<version>1</version><dependencies>{dependencies}</dependencies></project>
"""
DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


class MavenPart:
    """The jars that `artifacts` (group, artifact, version) need, themselves among them.

    `pins` are the SHA-256 of every jar, by file name. `cache` is where Maven puts them, and where they may be laid by
    hand. `tools` are further programs that the part needs, each with the Debian package that has it.
    """

    def __init__(self, product, artifacts, pins, cache, tools):
        self.product, self.artifacts, self.pins, self.cache, self.tools = product, artifacts, pins, cache, tools

    def are_pinned(self, folder):
        """Whether every jar is in this folder, as it is pinned."""
        return all((folder / name).exists() and sha256(folder / name) == pin for name, pin in self.pins.items())

    def lay(self, folder):
        """Puts the checked jars into a new folder, in the place of an old one."""
        is_cached = self.are_pinned(self.cache)
        self.require_tools(is_cached)
        if not is_cached:
            self.download()
        for name, pin in self.pins.items():
            if not (self.cache / name).exists() or sha256(self.cache / name) != pin:
                raise SetupError(self.product, f"{name} is not there or has not the SHA-256 that is pinned",
                                 "Do not use it. Find out what stands between this machine and the registry.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in self.pins:
            shutil.copyfile(self.cache / name, folder / name)

    def require_tools(self, offline):
        """The tools and, unless all jars are here, Maven: installed on Debian where root runs this."""
        wanted = dict(self.tools)
        if not offline:
            wanted["mvn"] = "maven"
        missing = [package for program, package in wanted.items() if shutil.which(program) is None]
        if missing and os.geteuid() == 0 and shutil.which("apt-get"):
            print(f"  installing Debian's packages {', '.join(missing)}")
            quiet = {"stdin": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
            subprocess.run(["apt-get", "update", "-qq"], **quiet)
            subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], **quiet)
        for program, package in wanted.items():
            if shutil.which(program) is None:
                raise SetupError(self.product, f"{program} is missing on this machine",
                                 f"Install it (Debian, Ubuntu: apt-get install {package}), then run this again.")

    def download(self):
        """Lets Maven resolve the artifacts and what they need into the cache."""
        project = self.cache / "project"
        project.mkdir(parents=True, exist_ok=True)
        dependencies = "".join(DEPENDENCY.format(*artifact) for artifact in self.artifacts)
        (project / "pom.xml").write_text(POM.format(name=self.artifacts[0][1], dependencies=dependencies))
        command = ["mvn", "-q", "-B", "-Dstyle.color=never", "-f", str(project / "pom.xml"),
                   "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={self.cache}"]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            raise SetupError(self.product, "Maven could not obtain its artifacts (its own words are above)",
                             f"Check the network and Maven's settings, or lay the files into {self.cache}, then run "
                             "this again.")
