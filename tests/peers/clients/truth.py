"""Ground truth: one JSON line for every JSON-RPC message that a client sent or received, as the client saw it.

Written by the peers themselves and compared with the verdicts afterwards. The lines hold what a verdict can be held
against (who sent it, method, id, tool, parameters) and of answers only their id and kind.
"""

import json
import threading


class Truth:
    """Appends to one file; every line is complete when the process ends."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
        self._lock = threading.Lock()

    def record(self, via: str, sender: str, message: dict) -> None:
        """`via`: `proxy` or `own_server`; `sender`: `client` or `server`; `message`: the JSON-RPC object."""
        if "method" in message:
            kind = "request" if "id" in message else "notification"
        else:
            kind = "error" if "error" in message else "response"
        params = message.get("params") or {}
        is_call = message.get("method") == "tools/call"
        line = {
            "via": via,
            "from": sender,
            "kind": kind,
            "id": message.get("id"),
            "method": message.get("method"),
            "tool": params.get("name") if is_call else None,
            "params": params if kind in ("request", "notification") else None,
        }
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
