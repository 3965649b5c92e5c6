// A server on the second TypeScript SDK: speaks 2026-07-28 and whatever came before.
import { McpServer, fromJsonSchema } from '@modelcontextprotocol/server';
import { serveStdio } from '@modelcontextprotocol/server/stdio';

const schema = (properties) =>
    fromJsonSchema({ type: 'object', properties, required: Object.keys(properties) });
const text = (value) => ({ content: [{ type: 'text', text: value }] });

serveStdio(() => {
    const server = new McpServer({ name: 'modern', version: '1.0.0' }, { capabilities: { tools: {} } });
    server.registerTool(
        'echo',
        { description: 'Says what it is told', inputSchema: schema({ message: { type: 'string' } }) },
        async ({ message }) => text(message)
    );
    server.registerTool(
        'blob',
        {
            description: 'A text of the given size',
            inputSchema: schema({ size: { type: 'integer' }, marker: { type: 'string' } })
        },
        async ({ size }) => text('x'.repeat(size))
    );
    server.registerTool(
        'slow',
        { description: 'Answers late', inputSchema: schema({ ms: { type: 'integer' }, marker: { type: 'string' } }) },
        async ({ ms, marker }) => {
            await new Promise((resolve) => setTimeout(resolve, ms));
            return text(marker);
        }
    );
    return server;
});
