#!/usr/bin/env python3
"""Runs Bulkhead with two demo tenants: starts the server, ingests demo/, asks both one question, keeps serving.

Everything goes through the public surface: the operator command line makes tenants and keys, the REST API takes the
documents and answers. Only the standard library is used.

Environment: BULKHEAD_BIN (the program), BULKHEAD__HTTP__ADDRESS (host:port, default 127.0.0.1:9621); every other
BULKHEAD__ setting reaches the server unchanged.

**Invariant:** this script never reads or writes the server's data; it holds one credential per tenant and nothing else.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

from demo_server import ROOT, Api, DemoError, Interrupted, Server, address, ending, exit_code, pretty, say

DEMO = ROOT / "demo"
DEFAULT_BIND = "127.0.0.1:9621"
STALL_SECONDS = 300.0  # ingestion without any progress for so long is given up
OPEN_STATES = ("pending", "parsing", "analyzing", "processing")


# -- tenants and keys -------------------------------------------------------------------------------------------------


def operator(program, *arguments):
    """Runs one operator subcommand with `--json`. Returns (answer, error text); exactly one of them is None."""
    done = subprocess.run(
        [str(program), "--json", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        return None, (done.stderr or done.stdout).strip() or ending(done.returncode)
    try:
        return json.loads(done.stdout), None
    except ValueError:
        return None, f"not JSON: {done.stdout[:200]!r}"


def make_credential(program, tenant):
    """A writer key for the tenant, which is created when it does not exist. The only place that knows the flags."""
    created, error = operator(
        program, "tenant", "create", "--name", tenant["name"], "--slug", tenant["slug"], "--reason", "demo"
    )
    if created is None:
        # Most likely it exists and only `.local/demo.json` was lost; if not, the first error is the one to show.
        listed, _ = operator(program, "tenant", "list")
        if isinstance(listed, dict):  # a page with a cursor
            listed = next((value for value in listed.values() if isinstance(value, list)), [])
        created = next((row for row in listed or [] if row.get("slug") == tenant["slug"]), None)
        if created is None:
            raise DemoError(f"Tenant {tenant['name']} could not be created: {error}")
    key, error = operator(
        program,
        *("key", "create", "--tenant", created["tenant_id"]),
        *("--role", "writer", "--name", "demo", "--reason", "demo"),
    )
    if key is None:
        raise DemoError(f"No key could be made for {tenant['name']}: {error}")
    return {"name": tenant["name"], "tenant_id": created["tenant_id"], "api_key": key["api_key"]}


def verifies(server, credential):
    return Api(server, credential["api_key"]).require("GET", "/auth/verify", also=(401, 403))[0] == 200


def credentials(server, program, tenants, path):
    """One working credential per tenant: from `path`, or new. New ones are written back, readable by the owner only."""
    known = {entry["name"]: entry for entry in read_json(path, [])}
    kept, fresh = [], False
    for tenant in tenants:
        entry = known.get(tenant["name"])
        if entry is None or not verifies(server, entry):
            entry, fresh = make_credential(program, tenant), True
            if not verifies(server, entry):
                raise DemoError(f"The server refuses the new key of {tenant['name']}; is the tenant suspended?")
        kept.append(entry)
    if fresh:
        write_json(path, kept)
    return kept


def read_json(path, default):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def write_json(path, value):
    """Replaces the file in one step; mode 0600 from its first byte on."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


# -- documents --------------------------------------------------------------------------------------------------------


def corpus(tenant):
    """The tenant's files, in a stable order."""
    files = sorted(p for p in (DEMO / tenant["folder"]).iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise DemoError(f"No documents in {pretty(DEMO / tenant['folder'])}.")
    return files


def fingerprint(files):
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def counts(api):
    """Documents by status, missing ones as 0."""
    answer = api.require("GET", "/documents/status_counts")[1]
    return {key: int(value) for key, value in answer.get("status_counts", answer).items()}


def upload(api, file):
    """Uploads one file; one that is there already (409) is left as it is."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    api.require("POST", "/documents/upload", body, f"multipart/form-data; boundary={boundary}", also=(409,))


class Progress:
    """A bar that redraws itself on a terminal and prints every tenth part elsewhere."""

    def __init__(self, label, total):
        self.label, self.total, self.shown, self.live = label, total, None, sys.stdout.isatty()

    def show(self, done, note=""):
        step = (done, note) if self.live else done * 10 // max(self.total, 1)
        if step == self.shown:
            return
        self.shown = step
        filled = done * 30 // max(self.total, 1)
        line = f"  {self.label:<9} [{'#' * filled}{'.' * (30 - filled)}] {done}/{self.total} {note}"
        print(f"\r\033[K{line}" if self.live else line.rstrip(), end="" if self.live else "\n", flush=True)

    def end(self):
        if self.live and self.shown is not None:
            print(flush=True)


def ingest(server, tenants, keys, stamp_path):
    """Brings every document in that is not there yet and waits until none is under way."""
    stamp = read_json(stamp_path, {})
    work, before = [], {}
    for tenant, key in zip(tenants, keys):
        api, files = Api(server, key["api_key"]), corpus(tenant)
        state, mark = counts(api), fingerprint(files)
        settled = not any(state.get(name, 0) for name in OPEN_STATES)
        if stamp.get(key["tenant_id"]) == mark and settled and state.get("processed", 0) >= len(files):
            continue
        before[key["tenant_id"]] = mark
        work.append((tenant, api, files))
    if not work:
        return
    say("Ingesting the demo documents")
    total = sum(len(files) for _, _, files in work)
    bar = Progress("uploaded", total)
    pairs = [(api, file) for _, api, files in work for file in files]
    for number, (api, file) in enumerate(pairs, 1):
        upload(api, file)
        bar.show(number)
    bar.end()
    await_processed(server, work, Progress("processed", total))
    write_json(stamp_path, {**stamp, **before})


def await_processed(server, work, bar):
    last, deadline = None, time.monotonic() + STALL_SECONDS
    while True:
        states = [counts(api) for _, api, _ in work]
        finished = [min(s.get("processed", 0) + s.get("failed", 0), len(f)) for s, (_, _, f) in zip(states, work)]
        under_way = {name: sum(s.get(name, 0) for s in states) for name in OPEN_STATES}
        note = ", ".join(f"{count} {name}" for name, count in under_way.items() if count)
        bar.show(sum(finished), note)
        if not note and all(n == len(f) for n, (_, _, f) in zip(finished, work)):
            break
        if states != last:
            last, deadline = states, time.monotonic() + STALL_SECONDS
        elif time.monotonic() > deadline:
            bar.end()
            where = note or "nothing under way"
            raise DemoError(f"No progress for {STALL_SECONDS:.0f} s ({where}).\n{server.log_tail()}")
        time.sleep(0.2)
    bar.end()
    for (tenant, api, _), state in zip(work, states):
        if state.get("failed", 0):
            say(f"  {tenant['name']}: {state['failed']} documents failed")
            body = {"status_filter": "failed", "page": 1, "page_size": 50}
            for row in api.require("POST", "/documents/paginated", body)[1].get("documents", []):
                say(f"    {row.get('file_path')}: {row.get('error_msg') or 'no reason given'}")


# -- what is shown ----------------------------------------------------------------------------------------------------

BACK_END_WORDS = {"database", "vector", "vectors", "graph", "audit", "cache", "limits", "embedding", "embeddings", "language"}


def back_ends(configuration, prefix=""):
    """The text entries of `/health`'s configuration that name a part, as (dotted name, value)."""
    for name, value in configuration.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from back_ends(value, f"{full}.")
        elif isinstance(value, str) and value and BACK_END_WORDS & set(full.replace(".", "_").split("_")):
            yield full, value


def show_summary(server, tenants, keys, question, credentials_path):
    base = f"http://[{server.host}]:{server.port}" if ":" in server.host else f"http://{server.host}:{server.port}"
    say(f"\nBulkhead serves at {base}")
    say(f"  API documentation  {base}/docs")
    say(f"  server log         {pretty(server.log)}")
    say(f"  credentials        {pretty(credentials_path)}")
    health = Api(server, keys[0]["api_key"]).require("GET", "/health")[1]
    configuration = health.get("configuration") if isinstance(health, dict) else None
    named = list(back_ends(configuration or {}))
    width = max((len(name) for name, _ in named), default=0)
    say("\nActive back ends")
    for name, value in named or [("none named by /health", "")]:
        say(f"  {name:<{width}}  {value}".rstrip())
    say("\nTenants")
    for key in keys:
        say(f"  {key['name']}\n    tenant      {key['tenant_id']}\n    credential  {key['api_key']}")
    say("\nA line to try")
    say(f"  curl -s {base}/query -H 'Authorization: Bearer {keys[0]['api_key']}' \\")
    say(f"    -H 'Content-Type: application/json' -d '{json.dumps({'query': question})}'")


def show_question(server, keys, question):
    """One question, asked with each tenant's credential."""
    columns = min(shutil.get_terminal_size((100, 24)).columns, 100)
    say(f"\nOne question, asked by each tenant: {question}")
    for key in keys:
        answer = Api(server, key["api_key"]).require("POST", "/query", {"query": question})[1]
        say(f"\n  {key['name']}")
        for line in str(answer.get("response", "")).strip().splitlines() or ["(no answer)"]:
            say(textwrap.fill(line, columns, initial_indent="    ", subsequent_indent="    ") if line.strip() else "")
        for reference in answer.get("references") or []:
            say(f"    [{reference.get('reference_id')}] {reference.get('file_path')}")


# -- the flow ---------------------------------------------------------------------------------------------------------


def run(server, program, state, once):
    started = time.monotonic()
    say(f"Starting the server (log: {pretty(server.log)})")
    server.start()
    tenants = json.loads((DEMO / "tenants.json").read_text(encoding="utf-8"))
    questions = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    keys = credentials(server, program, tenants, state / "demo.json")
    ingest(server, tenants, keys, state / "demo-ingested.json")
    show_summary(server, tenants, keys, questions[1]["question"], state / "demo.json")
    show_question(server, keys, questions[0]["question"])
    say(f"\nReady after {time.monotonic() - started:.1f} s.")
    if once:
        return server.stop(signal.SIGTERM)
    say("Serving until Ctrl-C.")
    code = server.child.wait()
    if code != 0:
        say(f"The server stopped ({ending(code)}).\n{server.log_tail()}")
    return exit_code(code)


def raise_interrupted(signum, _frame):
    raise Interrupted(signum)


def main():
    parser = argparse.ArgumentParser(description="Runs Bulkhead with two demo tenants.")
    parser.add_argument("--once", action="store_true", help="do everything, then stop the server and exit")
    parser.add_argument("--state", type=Path, default=ROOT / ".local", help="folder for credentials and log")
    options = parser.parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, raise_interrupted)
    state = options.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    program = ROOT / os.environ.get("BULKHEAD_BIN", target / "release" / "bulkhead")
    server = None
    try:
        server = Server(program, *address(os.environ.get("BULKHEAD__HTTP__ADDRESS", DEFAULT_BIND)), state / "server.log")
        return run(server, program, state, options.once)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        if server:
            server.stop(signal.SIGTERM)
        return 1
    except Interrupted as interrupt:
        if server is None:
            return 128 + interrupt.signum
        say("\nStopping the server.")
        return server.stop(interrupt.signum)


if __name__ == "__main__":
    sys.exit(main())
