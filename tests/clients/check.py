"""Asks a running server through published clients, as two tenants with files of the same names.

usage: check.py CLIENT URL OPERATOR_SOCKET OPERATOR_KEY_FILE

CLIENT is openai, ollama or lightrag. Ends with status 0 when every answer was right; otherwise says which was not.
"""

import http.client
import json
import socket
import sys
import time
import uuid

QUESTION = "Who inspected the Halden turbine?"
TEXTS = {
    "Mara Quill": "The Halden turbine was inspected by Mara Quill on 3 May 2024. Norvik Energy owns it.",
    "Tove Lund": "The Halden turbine was inspected by Tove Lund in winter. Brenner Power owns it.",
}


class Operator(http.client.HTTPConnection):
    """An operator's connection over the Unix socket."""

    def __init__(self, path, key):
        super().__init__("admin")
        self.path = path
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def post(self, path, body):
        self.request("POST", path, json.dumps(body), self.headers)
        answer = self.getresponse()
        text = answer.read()
        assert answer.status == 201, (answer.status, text)
        return json.loads(text)


def tenant(operator):
    """A new tenant's API key."""
    made = operator.post("/admin/tenants", {"name": f"clients-{uuid.uuid4().hex[:12]}", "reason": "a test"})
    path = f"/admin/tenants/{made['tenant_id']}/keys"
    return operator.post(path, {"name": "all", "roles": ["tenant_admin"], "reason": "a test"})["api_key"]


def call(url, key, method, path, body=None):
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, (path, answer.status, text)
    return json.loads(text)


def processed(url, key, count):
    deadline = time.monotonic() + 60
    while call(url, key, "GET", "/documents/status_counts")["status_counts"].get("processed") != count:
        assert time.monotonic() < deadline, "the documents are not processed"
        time.sleep(0.1)


def right(text, own):
    """The answer holds the asker's own fact, and nothing of its neighbour's."""
    assert own in text, text
    for other in TEXTS:
        assert other == own or other not in text, text


def check_openai(url, key, own):
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    assert [model.id for model in client.models.list()] == ["default"]
    assert client.models.retrieve("default").id == "default"
    messages = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model="default", messages=messages, temperature=0)
    right(whole.choices[0].message.content, own)
    assert whole.choices[0].finish_reason == "stop" and whole.usage.total_tokens > 0
    assert whole.model_extra["references"][0]["file_path"] == "turbine.txt", whole
    streamed = client.chat.completions.create(
        model="default", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    right(text, own)
    assert chunks[-1].usage.total_tokens > 0
    try:
        client.chat.completions.create(model="nowhere", messages=messages)
    except openai.NotFoundError as error:
        assert error.code == "not-found", error
    else:
        raise AssertionError("an unknown model was answered")
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
    except openai.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key was let in")


def check_ollama(url, key, own):
    import ollama

    client = ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"})
    assert [model.model for model in client.list().models] == ["default:latest"]
    assert [model.model for model in client.ps().models] == ["default:latest"]
    messages = [{"role": "user", "content": f"/naive {QUESTION}"}]
    whole = client.chat(model="default", messages=messages)
    right(whole.message.content, own)
    assert whole.done and whole.done_reason == "stop" and whole.total_duration > 0
    pieces = list(client.chat(model="default:latest", messages=messages, stream=True))
    right("".join(piece.message.content for piece in pieces), own)
    assert pieces[-1].done and not pieces[0].done
    for ask, status in [
        (lambda: client.chat(model="nowhere", messages=messages), 404),
        (lambda: client.generate(model="default", prompt="Say hi"), 501),
    ]:
        try:
            ask()
        except ollama.ResponseError as error:
            assert error.status_code == status and error.error, error
        else:
            raise AssertionError(f"not refused with {status}")


def check_lightrag(url, key, own):
    from lightrag_mcp.client.light_rag_server_api_client import models
    from lightrag_mcp.client.light_rag_server_api_client.api.documents import insert_text_documents_text_post as insert
    from lightrag_mcp.client.light_rag_server_api_client.api.graph import get_graph_labels_graph_label_list_get as labels
    from lightrag_mcp.client.light_rag_server_api_client.api.query import query_text_query_post as query
    from lightrag_mcp.client.light_rag_server_api_client.client import AuthenticatedClient

    client = AuthenticatedClient(base_url=url, token=key, raise_on_unexpected_status=True)
    inserted = insert.sync(client=client, body=models.InsertTextRequest(text="Norvik Bay is deep."))
    assert inserted.status == "success", inserted
    processed(url, key, 2)
    answer = query.sync(client=client, body=models.QueryRequest(query=QUESTION))
    right(answer.response, own)
    named = labels.sync_detailed(client=client)
    right(named.content.decode(), own)


def main():
    client, url, operator_socket, operator_key = sys.argv[1:]
    with open(operator_key, encoding="utf-8") as file:
        key = file.read().strip()
    keys = {own: tenant(Operator(operator_socket, key)) for own in TEXTS}
    for own, key in keys.items():
        call(url, key, "POST", "/documents/text", {"text": TEXTS[own], "file_source": "turbine.txt"})
    for own, key in keys.items():
        processed(url, key, 1)
        {"openai": check_openai, "ollama": check_ollama, "lightrag": check_lightrag}[client](url, key, own)


if __name__ == "__main__":
    main()
