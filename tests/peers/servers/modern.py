"""A server on the second Python SDK: speaks 2026-07-28 and whatever came before."""

import anyio
from mcp.server import MCPServer

server = MCPServer("modern")


@server.tool(structured_output=False)
def echo(message: str) -> str:
    """Says what it is told."""
    return message


@server.tool(structured_output=False)
def blob(size: int, marker: str) -> str:
    """A text of the given size."""
    del marker
    return "x" * size


@server.tool(structured_output=False)
async def slow(ms: int, marker: str) -> str:
    """Answers late."""
    await anyio.sleep(ms / 1000)
    return marker


if __name__ == "__main__":
    server.run("stdio")
