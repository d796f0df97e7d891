"""Owns the MCP protocol: one server object for both transports, which answers every request from the store.

:mod:`iai_mcp.server.calls` runs the calls; :mod:`iai_mcp.server.stdio` and :mod:`iai_mcp.server.http` carry the
bytes. Requests run concurrently, so a slow call delays no other.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
)

from iai_mcp._version import __version__
from iai_mcp.errors import IaiMcpError, RecordNotFound, UsageError
from iai_mcp.server import resources
from iai_mcp.server.calls import Caller, Calls
from iai_mcp.server.tools import INSTRUCTIONS, TOOLS

__all__ = ["build"]

Context = ServerRequestContext[Any, Any]
RESOURCE_NOT_FOUND = -32002  # for clients that shake hands; the revision of 2026-07-28 says INVALID_PARAMS
_AFTER_ANSWER_S = 0.05  # the store opens after the answer is out: its imports would delay it
_CLIENT_LIMIT = 200  # characters of a client's name and version


def build(calls: Calls) -> Server[Any]:
    """An MCP server; all its connections share ``calls``."""
    handlers = _Handlers(calls)
    server: Server[Any] = Server(
        "iai-mcp",
        version=__version__,
        title="iai-mcp memory",
        description="A shared long-term memory for AI agents that remembers being asked.",
        instructions=INSTRUCTIONS,
        get_tool_input_schema=lambda name: TOOLS[name].input_schema if name in TOOLS else None,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_list_resource_templates=handlers.list_templates,
        on_read_resource=handlers.read_resource,
        on_list_prompts=handlers.list_prompts,
        on_get_prompt=handlers.get_prompt,
    )
    server.middleware.append(handlers.warm_up)
    return server


class _Handlers:
    """One method for each kind of request."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._process = f"stdio-{uuid.uuid4().hex[:16]}"
        self._tools = [_tool(name) for name in TOOLS]

    async def warm_up(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Start to open the store after the handshake."""
        result = await call_next(ctx)
        if ctx.method != "initialize":
            asyncio.get_running_loop().call_later(_AFTER_ANSWER_S, self._calls.warm)
        return result

    def _caller(self, context: Context) -> Caller:
        headers = getattr(context.request, "headers", None)
        session = self._process if headers is None else headers.get("mcp-session-id", "")
        params = context.session.client_params
        if params is None:
            return Caller(session)
        info = params.client_info
        client = f"{info.name}/{info.version}" if info.version else info.name
        return Caller(session, client[:_CLIENT_LIMIT])

    # -- tools

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=self._tools)

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> Any:
        if params.name not in TOOLS:
            raise MCPError(INVALID_PARAMS, f"no tool {params.name[:80]!r}: call one of {', '.join(TOOLS)}")
        answer = await self._calls.call(params.name, params.arguments or {}, self._caller(context))
        content = [{"type": "text", "text": answer.text}]
        # A dict, not a model: this saves one copy of a long result.
        result: dict[str, Any] = {"content": content, "isError": answer.error, "resultType": "complete"}
        if answer.structured is not None:
            result["structuredContent"] = answer.structured
        return result

    # -- resources

    async def list_resources(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        offset = _offset(params.cursor if params else None)
        found, more = await self._run(lambda store: resources.newest(store, offset))
        shown = [Resource(uri=page.uri, name=page.name, mime_type=page.mime) for page in found]
        return ListResourcesResult(resources=shown, next_cursor=str(offset + len(found)) if more else None)

    async def list_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        template = ResourceTemplate(
            uri_template=resources.TEMPLATE,
            name="memory",
            title="A memory and its trace",
            description="One memory and its recalls; format is markdown (default) or json.",
        )
        return ListResourceTemplatesResult(resource_templates=[template])

    async def read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        uri = str(params.uri)
        page = await self._run(lambda store: resources.read(store, uri), uri)
        return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=page.mime, text=page.text)])

    async def _run(self, work: Any, uri: str = "") -> Any:
        try:
            return await self._calls.run(work)
        except RecordNotFound as error:
            raise MCPError(RESOURCE_NOT_FOUND, str(error), {"uri": uri}) from None
        except UsageError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None
        except IaiMcpError as error:
            raise MCPError(-32603, str(error)) from None

    # -- prompts

    async def list_prompts(self, context: Context, params: PaginatedRequestParams | None) -> ListPromptsResult:
        prompt = Prompt(
            name=resources.PROMPT,
            title="Explain the sources",
            description="Explain which memories an answer rested on, from the trace of its recalls.",
            arguments=[
                PromptArgument(name="recall_id", description="The recall to explain."),
                PromptArgument(name="session_id", description="Or the session; default: this connection's."),
            ],
        )
        return ListPromptsResult(prompts=[prompt])

    async def get_prompt(self, context: Context, params: GetPromptRequestParams) -> GetPromptResult:
        if params.name != resources.PROMPT:
            raise MCPError(INVALID_PARAMS, f"no prompt {params.name[:80]!r}: ask for {resources.PROMPT}")
        try:
            text = resources.explain(params.arguments or {}, self._caller(context).session_id)
        except UsageError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None
        message = PromptMessage(role="user", content=TextContent(type="text", text=text))
        return GetPromptResult(description="Which memories an answer rested on", messages=[message])


def _tool(name: str) -> Tool:
    tool = TOOLS[name]
    return Tool(
        name=name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        annotations=ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.read_only,
            destructive_hint=tool.destructive,
            idempotent_hint=tool.idempotent,
            open_world_hint=False,
        ),
    )


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 12:
        raise MCPError(INVALID_PARAMS, "this server did not give that cursor: list again without one")
    return int(cursor)
