"""A client on the official Python SDK, first or second generation, whichever the environment holds.

Does one session through the proxy (when one is given) and one directly with the server, writes down every message of both
and ends with code 0 only if every answer was the expected one.

    python_sdk.py --truth FILE --scenario NAME --sandbox DIR [--mode auto] [--proxy ARG]... -- SERVER ARG...
"""

import argparse
import contextlib
import importlib.metadata
import json
import pathlib

import anyio
from mcp.client.stdio import StdioServerParameters, stdio_client
from truth import Truth

SECOND_GENERATION = int(importlib.metadata.version("mcp").split(".")[0]) >= 2
CONCURRENT = 20
# The text of a file comes twice in an answer, as content and as structured content: about 1 MiB and 16 MiB.
BIG_FILES = {"big-1.txt": 500 * 1024, "big-16.txt": 8 * 1024 * 1024 - 64 * 1024}


class Recorded:
    """A stdio transport that tells the truth file of every message."""

    def __init__(self, parameters: StdioServerParameters, truth: Truth, via: str) -> None:
        self._parameters, self._truth, self._via = parameters, truth, via
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self):
        read, write = await self._stack.enter_async_context(stdio_client(self._parameters))
        to_session, from_server = anyio.create_memory_object_stream(0)
        to_server, from_session = anyio.create_memory_object_stream(0)
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._group = group

        async def pump(source, sink, sender):
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with sink:
                    async for item in source:
                        if not isinstance(item, Exception):
                            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                            self._truth.record(self._via, sender, json.loads(text))
                        await sink.send(item)

        group.start_soon(pump, read, to_session, "server")
        group.start_soon(pump, from_session, write, "client")
        return from_server, to_server

    async def __aexit__(self, *exception):
        self._group.cancel_scope.cancel()
        return await self._stack.__aexit__(*exception)


@contextlib.asynccontextmanager
async def connect(command: list[str], truth: Truth, via: str, mode: str):
    """A connected client with `call_tool` and `list_tools`."""
    transport = Recorded(StdioServerParameters(command=command[0], args=command[1:]), truth, via)
    if SECOND_GENERATION:
        from mcp import Client

        async with Client(transport, mode=mode) as client:
            yield client
    else:
        from mcp import ClientSession

        async with transport as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            yield session


def text_of(result) -> str:
    """The text of the first content block."""
    assert not getattr(result, "is_error", getattr(result, "isError", False)), result
    return result.content[0].text


async def filesystem(client, sandbox: pathlib.Path, via: str) -> None:
    """Reads and writes, twenty at once, and two big files."""
    assert {tool.name for tool in (await client.list_tools()).tools} >= {"read_text_file", "write_file"}

    async def one(index: int) -> None:
        path = sandbox / f"{via}-{index:02}.txt"
        await client.call_tool("write_file", {"path": str(path), "content": f"{via} {index} \u00fc\u2028 <&>\n"})
        answer = text_of(await client.call_tool("read_text_file", {"path": str(path)}))
        assert answer == f"{via} {index} \u00fc\u2028 <&>\n", answer

    async with anyio.create_task_group() as group:
        for index in range(CONCURRENT):
            group.start_soon(one, index)
    for name, size in BIG_FILES.items():
        path = sandbox / f"{via}-{name}"
        path.write_text("0123456789abcdef" * (size // 16))
        assert len(text_of(await client.call_tool("read_text_file", {"path": str(path)}))) == size
    with contextlib.suppress(AssertionError):
        text_of(await client.call_tool("read_text_file", {"path": str(sandbox / f"{via}-missing.txt")}))
        raise SystemExit("a missing file was read")


async def everything(client, sandbox: pathlib.Path, via: str) -> None:
    """Short calls overtake long ones, so answers come out of order; progress comes in between."""
    del sandbox
    order: list[int] = []

    async def slow(index: int) -> None:
        arguments = {"duration": 0.2 + 0.02 * (CONCURRENT - index), "steps": 2}
        await client.call_tool("trigger-long-running-operation", arguments)
        order.append(index)

    async def fast(index: int) -> None:
        assert f"{via}-{index}" in text_of(await client.call_tool("echo", {"message": f"{via}-{index}"}))
        order.append(CONCURRENT + index)

    async with anyio.create_task_group() as group:
        for index in range(CONCURRENT):
            group.start_soon(slow, index)
            group.start_soon(fast, index)
    assert order != sorted(order), "no answer overtook another"
    await client.list_resources()
    await client.list_prompts()


async def modern(client, sandbox: pathlib.Path, via: str) -> None:
    """The servers in `servers/`, for the revision without handshake."""
    del sandbox
    assert {tool.name for tool in (await client.list_tools()).tools} >= {"echo", "blob"}

    async def one(index: int) -> None:
        assert text_of(await client.call_tool("echo", {"message": f"{via}-{index}"})) == f"{via}-{index}"

    async with anyio.create_task_group() as group:
        for index in range(CONCURRENT):
            group.start_soon(one, index)
    assert len(text_of(await client.call_tool("blob", {"size": 1024 * 1024, "marker": f"{via}-blob"}))) == 1024 * 1024


SCENARIOS = {"filesystem": filesystem, "everything": everything, "modern": modern}


async def main() -> None:
    """One session through the proxy, one around it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--truth", required=True)
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--sandbox", type=pathlib.Path, required=True)
    parser.add_argument("--mode", default="legacy")
    parser.add_argument("--proxy", action="append", default=[])
    parser.add_argument("server", nargs="+")
    arguments = parser.parse_args()
    truth = Truth(arguments.truth)
    sandbox = arguments.sandbox.resolve()
    ways = {"own_server": arguments.server}
    if arguments.proxy:
        ways = {"proxy": [*arguments.proxy, "--", *arguments.server], **ways}
    for via, command in ways.items():
        with anyio.fail_after(120):
            async with connect(command, truth, via, arguments.mode) as client:
                await SCENARIOS[arguments.scenario](client, sandbox, via)


if __name__ == "__main__":
    anyio.run(main)
