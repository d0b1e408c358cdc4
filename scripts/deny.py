#!/usr/bin/env python3
"""Holds the dependencies to `deny.toml` with cargo-deny, which comes ready-made and pinned into .local/tools.

    deny.py               licences, bans and sources: needs the registry of crates alone
    deny.py advisories    known vulnerabilities: needs RustSec's database, a git repository on a public host

Ends with 0 when nothing is wrong, with 1 when something is, and with 3 when the database could not be had or is
old, so that nothing can be said: that is printed loudly, and is never taken for a success. A copy of the
database that was fetched before, or laid into place by hand, is used when it can not be fetched anew.
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys

from parts import Part, SetupError, unpack
from setup import only_one

ROOT = pathlib.Path(__file__).resolve().parent.parent
ADVISORIES = "https://github.com/RustSec/advisory-db"
# The folder's name is cargo-deny's own, of the address above.
FOLDER = "advisory-dbs/advisory-db-3157b0e258782691"
FETCH_FAILED = "failed to fetch advisory database"
SECONDS = 120
OLD_DAYS = 30
NOT_CHECKED = 3


def tool(root):
    """The path of the pinned cargo-deny, obtained when it is missing."""
    entries = json.loads((root / "scripts/parts.json").read_text(encoding="utf-8"))["tools"]
    entry = next(entry for entry in entries if entry["name"] == "cargo-deny")
    (root / ".local/tools").mkdir(parents=True, exist_ok=True)
    part = Part(entry, root / ".local", "tools")

    def wanted(name):
        return "bin/cargo-deny" if name.endswith(".data/scripts/cargo-deny") else None

    with only_one(root / ".local"):
        if not part.is_installed("", ("bin/cargo-deny",)):
            part.install(lambda archive, folder: unpack(archive, folder, wanted))
    return part.link / "bin/cargo-deny"


def age(folder):
    """Days since the newest advisory of a copy of the database; None when there is no copy."""
    command = ["git", "-C", str(folder), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if not folder.is_dir() or done.returncode != 0:
        return None
    newest = datetime.datetime.fromtimestamp(int(done.stdout), datetime.timezone.utc)
    return (datetime.datetime.now(datetime.timezone.utc) - newest).days


def verdict(status, fetched, days):
    """The exit code, and what is to be said aloud. `days`: the age of the copy, None without one."""
    if not fetched and days is None:
        return NOT_CHECKED, "RustSec's database cannot be fetched and no copy of it is here"
    if status != 0:
        return 1, "cargo-deny found what is printed above"
    if days is None or days > OLD_DAYS:
        said = "an unknown number of" if days is None else days
        return NOT_CHECKED, f"the newest advisory in the database is {said} days old, so later ones are not known"
    return 0, ""


def run(command):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, timeout=SECONDS)
    return done.returncode, done.stdout


def advisories(program):
    folder = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo") / FOLDER
    check = ["--locked", "check", "advisories"]
    try:
        status, words = run([program, *check])
        fetched = FETCH_FAILED not in words
    except subprocess.TimeoutExpired:
        status, words, fetched = 1, "", False
    days = age(folder)
    if not fetched and days is not None:
        status, words = run([program, "--offline", *check])
    code, said = verdict(status, fetched, days)
    print(words, end="")
    if code == NOT_CHECKED:
        frame = "!" * 100
        print(f"{frame}\n!! KNOWN VULNERABILITIES NOT CHECKED: {said}.\n!! On a machine that reaches {ADVISORIES}:\n"
              f"!!   python3 scripts/deny.py advisories\n!! or lay a clone of it into {folder}.\n{frame}")
    elif not fetched:
        print(f"The database could not be fetched; a copy was used whose newest advisory is {days} days old.")
    return code


def main():
    try:
        program = tool(ROOT)
    except SetupError as error:
        sys.exit(f"{error}\n{error.remedy}")
    if sys.argv[1:] == ["advisories"]:
        sys.exit(advisories(program))
    sys.exit(subprocess.run([program, "--locked", "check", "licenses", "bans", "sources"], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
