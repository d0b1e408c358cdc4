#!/usr/bin/env python3
"""A stand-in for the `bulkhead` program with just enough of its surface to test `demo.py` without a build.

State is one JSON file in the folder FAKE_HOME. FAKE_MODE: `die` makes the server fail at start; `unclean` makes it
exit with 7 when it is stopped. FAKE_FAIL names a file whose processing fails.
"""

import fcntl
import json
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOME = Path(os.environ["FAKE_HOME"])
EMPTY = {"tenants": [], "keys": {}, "documents": {}, "calls": []}


@contextmanager
def state():
    """The state, held under a lock by one process or thread at a time and written back."""
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = HOME / "fake.json"
        value = json.loads(path.read_text()) if path.exists() else json.loads(json.dumps(EMPTY))
        yield value
        path.with_suffix(".new").write_text(json.dumps(value))
        path.with_suffix(".new").replace(path)


def operator(arguments):
    flags = {arguments[i][2:]: arguments[i + 1] for i in range(2, len(arguments) - 1, 2)}
    with state() as s:
        s["calls"].append(" ".join(arguments))
        if arguments[:2] == ["tenant", "create"]:
            assert flags["reason"], flags
            if any(t["slug"] == flags["slug"] for t in s["tenants"]):
                print("a tenant with this slug exists", file=sys.stderr)
                return 1
            row = {"tenant_id": f"t-{len(s['tenants']) + 1}", "name": flags["name"], "slug": flags["slug"]}
            s["tenants"].append(row)
            print(json.dumps({**row, "state": "active"}))
        elif arguments[:2] == ["tenant", "list"]:
            print(json.dumps({"tenants": s["tenants"], "next": None}))
        elif arguments[:2] == ["key", "create"]:
            assert flags["role"] == "writer" and flags["reason"], flags
            assert any(t["tenant_id"] == flags["tenant"] for t in s["tenants"]), flags
            secret = f"bk_fake{len(s['keys']) + 1}"
            s["keys"][secret] = flags["tenant"]
            print(json.dumps({"key_id": "k", "api_key": secret, "roles": ["writer"], "expires_at": None}))
        else:
            return 2
    return 0


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def tenant(self, s):
        return s["keys"].get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def counts(self, s, tenant):
        rows = s["documents"].setdefault(tenant, {})
        counts = {"pending": 0, "parsing": 0, "analyzing": 0, "processing": 0, "processed": 0, "failed": 0}
        for name, row in rows.items():
            row["polls"] = row.get("polls", 0) + 1
            if row["polls"] > 2:
                row["status"] = "failed" if name == os.environ.get("FAKE_FAIL") else "processed"
            counts[row["status"]] += 1
        return {**counts, "all": len(rows)}

    def do_GET(self):
        with state() as s:
            tenant = self.tenant(s)
            if self.path == "/health" and tenant is None:
                return self.answer(200, {"status": "healthy"})
            if tenant is None:
                return self.answer(401, {"detail": "The credential is not valid."})
            if self.path == "/health":
                parts = {"vectors": {"backend": "qdrant-edge"}, "audit_log": "postgres", "llm": "none", "top_k": 40}
                return self.answer(200, {"status": "healthy", "configuration": parts})
            if self.path == "/auth/verify":
                return self.answer(200, {"status": "ok"})
            if self.path == "/documents/status_counts":
                return self.answer(200, {"status_counts": self.counts(s, tenant)})
        return self.answer(404, {"detail": "not found"})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with state() as s:
            tenant = self.tenant(s)
            s["calls"].append(self.path)
            if tenant is None:
                return self.answer(401, {"detail": "The credential is not valid."})
            rows = s["documents"].setdefault(tenant, {})
            if self.path == "/documents/upload":
                match = re.search(rb'name="file"; filename="([^"]+)"\r\n[^\r]*\r\n\r\n(.*)\r\n--', raw, re.S)
                name, content = match[1].decode(), match[2].decode()
                if s["calls"].count(self.path) == 3:  # busy once, to see the client wait
                    return self.answer(429, {"detail": "slow down"}, Retry_After="0")
                if name in rows:
                    return self.answer(409, {"detail": "exists"})
                rows[name] = {"status": "pending", "content": content}
                return self.answer(200, {"status": "success", "message": "", "track_id": "upload_1"})
            if self.path == "/documents/paginated":
                failed = [n for n, row in rows.items() if row["status"] == "failed"]
                return self.answer(200, {"documents": [{"file_path": n, "error_msg": "planted"} for n in failed]})
            if self.path == "/query":
                text = rows["product-halcyon.md"]["content"].split("\n\n")[1]
                reference = {"reference_id": "1", "file_path": "product-halcyon.md"}
                return self.answer(200, {"response": text, "references": [reference], "llm_generated": False})
        return self.answer(404, {"detail": "not found"})


def serve():
    print("fake server starts", flush=True)
    if os.environ.get("FAKE_MODE") == "die":
        print("no database here", file=sys.stderr)
        return 3
    host, port = os.environ["BULKHEAD__HTTP__ADDRESS"].rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    caught = []

    def stop(signum, _frame):
        caught.append(signum)
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    server.daemon_threads = False
    server.serve_forever()
    server.server_close()  # waits for the answers under way, whose state is written last
    print(f"stopped by signals {[int(signum) for signum in caught]}", flush=True)
    return 7 if os.environ.get("FAKE_MODE") == "unclean" else 0


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1] == "serve" else operator(sys.argv[2:]))
