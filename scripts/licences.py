#!/usr/bin/env python3
"""Refuses a dependency whose licence `deny.toml` does not allow, or that comes from anywhere but a registry.

The same as `cargo deny check licenses sources`, from `cargo metadata` alone. It knows nothing of vulnerabilities:
these are in a database that only a network brings.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKEN = re.compile(r"\(|\)|[^\s()]+")


def allowed_licences(text):
    """The list `allow` of the section `[licenses]`. Read by hand: Python has a TOML reader only since 3.11."""
    section = text.split("[licenses]", 1)[1].split("\n[", 1)[0]
    return set(re.findall(r'"([^"]+)"', re.search(r"^allow = \[(.*?)^\]", section, re.M | re.S)[1]))


def permitted(expression, allowed):
    """Whether a licence expression (SPDX, or the older form with `/`) can be met with these licences."""
    tokens = TOKEN.findall(expression.replace("/", " OR "))[::-1]

    def either():
        met = both()
        while tokens and tokens[-1] == "OR":
            tokens.pop()
            met = both() or met
        return met

    def both():
        met = one()
        while tokens and tokens[-1] == "AND":
            tokens.pop()
            met = one() and met
        return met

    def one():
        name = tokens.pop()
        if name == "(":
            met = either()
            if tokens.pop() != ")":
                raise ValueError(expression)
            return met
        if tokens and tokens[-1] == "WITH":
            tokens.pop()
            name = f"{name} WITH {tokens.pop()}"
        return name in allowed

    try:
        met = either()
    except IndexError:
        raise ValueError(expression) from None
    if tokens:
        raise ValueError(expression)
    return met


def faults(packages, allowed):
    """What is wrong with packages as `cargo metadata` lists them, each as a line."""
    found = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence, source = package["license"], package["source"]
        if not licence:
            found.append(f"{name}: states no licence")
        elif not permitted(licence, allowed):
            found.append(f"{name}: {licence} is not allowed")
        if source is not None and not source.startswith(("registry+", "sparse+")):
            found.append(f"{name}: comes from {source}")
    return found


def main():
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--format-version", "1", "--locked", "--all-features"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    packages = json.loads(done.stdout)["packages"]
    found = faults(packages, allowed_licences((ROOT / "deny.toml").read_text(encoding="utf-8")))
    print(f"{len(packages)} packages, {len(found)} faults")
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
