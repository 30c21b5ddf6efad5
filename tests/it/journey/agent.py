"""An agent's session with `mandate mcp`, by the official Python client. Prints what it found as one JSON object."""

import asyncio
import json
import sys

from mcp import ClientSession, StdioServerParameters, stdio_client


async def session(program, address, tenant):
    server = StdioServerParameters(command=program, args=["--api", address, "mcp"])
    async with stdio_client(server) as (read, write), ClientSession(read, write) as client:
        await client.initialize()

        async def call(tool, **arguments):
            result = await client.call_tool(tool, arguments)
            return result.model_dump(by_alias=True)["structuredContent"]

        tools = (await client.list_tools()).tools
        found = await call("get_tenant", tenant_id=tenant)
        incidents = await call("list_incidents", tenant_id=tenant, since="2h")
        incident = await call("get_incident", tenant_id=tenant, incident_id=incidents["incidents"][0]["incident_id"])
        hunt = await call("start_hunt", query="DeviceInfo | take 5")
        while hunt["status"] == "running":
            hunt = await call("get_hunt", hunt_id=hunt["hunt_id"])
        refused = await call("start_hunt", query="DeviceInfo | union (externaldata(a: string)['https://example.com'])")
        await call("list_tenants")
        await call("completeness")
        return {
            "tools": [tool.name for tool in tools],
            "customer": found["tenant"]["outside"]["customer"],
            "title": incident["incident"]["outside"]["title"],
            "rows": len(hunt["rows"]),
            "refused": refused["code"],
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(session(*sys.argv[1:]))))
