"""The language server as a process: programs of the gallery, what is no message, how it ends.

Run: protocol_test.py TPLIMIT ROOT; how long it takes: bench/editor_times.py.
"""
import pathlib
import sys

from client import Client

tplimit, root = sys.argv[1], pathlib.Path(sys.argv[2])
programs = sorted((root / "programs").rglob("*.tp"))
assert len(programs) > 20, "the programs are not where they were"

# Every program is right, has symbols, and each of its lines can be asked about.
client = Client(tplimit)
for program in programs:
    uri, text = program.resolve().as_uri(), program.read_text()
    client.open(uri, text)
    errors = [d for d in client.diagnostics(uri) if d["severity"] == 1]
    assert not errors, (program, errors)
    symbols = client.request("textDocument/documentSymbol", {"textDocument": {"uri": uri}})
    assert any(s["detail"] == "width" for s in symbols) or "import" in text, program
    client.at("completion", uri, text.count("\n"), 0)
    for line, code in enumerate(text.splitlines()):
        if code:
            client.at("hover", uri, line, len(code) - len(code.lstrip()))
    client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})

# Typing: an error comes and goes.
uri = "untitled:typing"
client.open(uri, "width n\nreport q\n")
assert [d["code"] for d in client.diagnostics(uri)] == ["E2103"]
client.notify("textDocument/didChange", {"textDocument": {"uri": uri, "version": 2}, "contentChanges": [{"text": "width n\nreport 1\n"}]})
assert client.diagnostics(uri) == []

# What is no message.
client.send_bytes(b"{ no JSON")
assert client.read()["error"]["code"] == -32700
assert client.call("textDocument/flight", {})["error"]["code"] == -32601
assert client.leave() == 0

# Without a shutdown, and hung up.
client = Client(tplimit)
client.notify("exit", None)
assert client.process.wait(timeout=30) == 1
client = Client(tplimit)
client.process.stdin.close()
assert client.process.wait(timeout=30) == 1
print(f"{len(programs)} programs")
