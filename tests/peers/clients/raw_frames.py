"""A client that writes its frames by hand, to decide how they are cut: the framing that no SDK produces on purpose.

Several messages in one write, one message in many writes, line ends and blank lines of every kind, `7` and `"7"` in flight
at once, answers out of order. Expects a server that executes calls without a handshake and has the tools of
`server-everything`. Ends with code 0 only if every request was answered.

    raw_frames.py --truth FILE [--socketpair] [--proxy ARG]... -- SERVER ARG...
"""

import argparse
import json
import socket
import subprocess
import threading

from truth import Truth

TIMEOUT = 60.0


class Wire:
    """A child process with its standard input and output, over pipes or a pair of unix sockets."""

    def __init__(self, command: list[str], truth: Truth, via: str, sockets: bool) -> None:
        self._truth, self._via = truth, via
        self._waiting: set[str] = set()
        self._changed = threading.Condition()
        if sockets:
            ours, theirs = socket.socketpair()
            self._child = subprocess.Popen(command, stdin=theirs, stdout=theirs)
            theirs.close()
            self._close = lambda: ours.shutdown(socket.SHUT_WR)
            self._write, output = ours.sendall, ours.makefile("rb")
        else:
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            self._close = self._child.stdin.close
            self._write, output = self._write_all, self._child.stdout
        self._reader = threading.Thread(target=self._read, args=(output,))
        self._reader.start()

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._child.stdin.write(view) :]

    def _read(self, output) -> None:
        buffer = b""
        while chunk := (output.read1(65536) if hasattr(output, "read1") else output.read(65536)):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                if not line.strip():
                    continue
                message = json.loads(line)
                self._truth.record(self._via, "server", message)
                if "method" not in message:
                    with self._changed:
                        self._waiting.discard(json.dumps(message["id"]))
                        self._changed.notify_all()

    def frame(self, identity, method: str, params: dict) -> bytes:
        """One message as text, noted as sent; the caller writes it next."""
        message = {"jsonrpc": "2.0", "id": identity, "method": method, "params": params}
        if identity is None:
            del message["id"]
        else:
            self._waiting.add(json.dumps(identity))
        self._truth.record(self._via, "client", message)
        return json.dumps(message, ensure_ascii=False).encode()

    def echo(self, identity, text: str) -> bytes:
        """A call of `echo`."""
        return self.frame(identity, "tools/call", {"name": "echo", "arguments": {"message": f"{self._via} {text}"}})

    def write(self, data: bytes) -> None:
        """One write."""
        self._write(data)

    def settle(self) -> None:
        """Waits until everything sent is answered."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._waiting, TIMEOUT)
        if not done:
            raise SystemExit(f"no answer to {sorted(self._waiting)}")

    def end(self) -> None:
        """Closes the input and waits for the end."""
        self._close()
        self._child.wait(TIMEOUT)
        self._reader.join(TIMEOUT)


def session(wire: Wire) -> None:
    """Every way to cut frames."""
    wire.write(b"".join(wire.echo(f"one-write-{index}", f"together {index}") + b"\n" for index in range(12)))
    wire.settle()
    data = wire.echo("bytewise", "one byte at a time \u00e4\u20ac\U0001f600") + b"\n"
    for index in range(len(data)):
        wire.write(data[index : index + 1])
    wire.settle()
    first, second = wire.echo("cut-1", "cut in the middle"), wire.echo("cut-2", "of two messages")
    wire.write(first[:30])
    wire.write(first[30:] + b"\n" + second[:50])
    wire.write(second[50:])
    wire.write(b"\n")
    wire.settle()
    wire.write(b"\n\r\n" + wire.echo("crlf", "carriage return") + b"\r\n\n")
    wire.settle()
    wire.write(b"  \t" + wire.echo("spaces", "leading white space") + b"\n")
    wire.settle()
    slow = {"name": "trigger-long-running-operation", "arguments": {"duration": 0.3, "steps": 1}}
    wire.write(wire.frame(7, "tools/call", slow) + b"\n" + wire.echo("7", "the same digit") + b"\n")
    wire.settle()
    wire.write(wire.echo("big", "x" * (1024 * 1024)) + b"\n")
    wire.settle()
    for index in range(20):
        wire.write(wire.echo(1000 + index, f"in flight {index}") + b"\n")
    wire.settle()
    wire.write(wire.frame(None, "notifications/cancelled", {"requestId": "nobody", "reason": wire.__class__.__name__}) + b"\n")
    wire.write(wire.echo("last", "after the notification") + b"\n")
    wire.settle()


def main() -> None:
    """One session through the proxy, one around it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--truth", required=True)
    parser.add_argument("--socketpair", action="store_true")
    parser.add_argument("--proxy", action="append", default=[])
    parser.add_argument("server", nargs="+")
    arguments = parser.parse_args()
    truth = Truth(arguments.truth)
    ways = {"own_server": arguments.server}
    if arguments.proxy:
        ways = {"proxy": [*arguments.proxy, "--", *arguments.server], **ways}
    for via, command in ways.items():
        wire = Wire(command, truth, via, arguments.socketpair)
        session(wire)
        wire.end()


if __name__ == "__main__":
    main()
