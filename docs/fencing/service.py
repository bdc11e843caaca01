#!/usr/bin/env python3
"""An HTTP service that refuses old tokens: PUT /name with the header Fencing-Token. 200, or 409 if the token is old.

    service.py PORT DATABASE

The highest token is kept beside the value and changed in the same transaction, so that it survives a restart.
"""
import pathlib
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CREATE, FENCE = [part.split("\n", 1)[1] for part in
                 (pathlib.Path(__file__).parent / "fence.sql").read_text().split("\n\n")]


def connect(database):
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(CREATE)
    connection.execute("CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    return connection


def write(connection, name, value, token):
    """Whether the token is not older than any that was seen for this name; then the value is written."""
    connection.execute("BEGIN IMMEDIATE")
    fenced = connection.execute(FENCE, {"resource": name, "token": token}).fetchone() is None
    if not fenced:
        connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (name, value))
    connection.execute("ROLLBACK" if fenced else "COMMIT")
    return not fenced


class Handler(BaseHTTPRequestHandler):
    def answer(self, code, text):
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        value = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        token = self.headers.get("Fencing-Token", "")
        if not token.isdigit():
            return self.answer(400, "the header Fencing-Token is missing\n")
        if write(connect(self.server.database), self.path, value, int(token)):
            return self.answer(200, "written\n")
        return self.answer(409, f"the token {token} is old: somebody else holds the lock\n")

    def do_GET(self):
        row = connect(self.server.database).execute("SELECT value FROM documents WHERE name = ?", (self.path,)).fetchone()
        return self.answer(200, row[0]) if row else self.answer(404, "")

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.database = sys.argv[2]
    server.serve_forever()
