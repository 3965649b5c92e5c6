// A client on the official TypeScript SDK, first or second generation. Node gives its children unix sockets as standard
// input and output, where Python and Rust parents give pipes.
//
// Does one session through the proxy (when one is given) and one directly with the server, writes down every message of
// both and ends with code 0 only if every answer was the expected one.
//
//     node typescript_sdk.mjs --sdk 1|2 --truth FILE --scenario NAME --sandbox DIR [--mode M] [--proxy ARG]... -- SERVER ARG...
import assert from 'node:assert/strict';
import { appendFileSync, realpathSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const CONCURRENT = 20;
// This SDK ends a connection at a message of more than 10 MiB, and the text of a file comes twice in an answer.
const BIG_FILES = { 'big-1.txt': 500 * 1024, 'big-8.txt': 4 * 1024 * 1024 };

const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
        sdk: { type: 'string' },
        truth: { type: 'string' },
        scenario: { type: 'string' },
        sandbox: { type: 'string' },
        mode: { type: 'string', default: 'legacy' },
        proxy: { type: 'string', multiple: true, default: [] }
    }
});

const record = (via, from, message) => {
    const kind =
        'method' in message ? ('id' in message ? 'request' : 'notification') : 'error' in message ? 'error' : 'response';
    const isAsked = 'method' in message;
    const line = {
        via,
        from,
        kind,
        id: message.id ?? null,
        method: message.method ?? null,
        tool: message.method === 'tools/call' ? message.params.name : null,
        params: isAsked ? (message.params ?? {}) : null
    };
    appendFileSync(values.truth, `${JSON.stringify(line)}\n`);
};

/** The SDK's stdio transport, telling the truth file of every message. */
const recorded = (Transport) =>
    class extends Transport {
        constructor(command, via) {
            super({ command: command[0], args: command.slice(1), stderr: 'inherit' });
            this.via = via;
            // On the instance: the second generation declares a field of this name, which would hide an accessor of ours.
            let handler;
            Object.defineProperty(this, 'onmessage', {
                get: () => handler,
                set: (inner) => {
                    handler =
                        inner &&
                        ((message, ...rest) => {
                            record(via, 'server', message);
                            inner(message, ...rest);
                        });
                }
            });
        }
        async send(message, ...rest) {
            record(this.via, 'client', message);
            return super.send(message, ...rest);
        }
    };

const connect = async (command, via) => {
    const name = { name: 'countersign-peer', version: '1.0.0' };
    const sdk = values.sdk === '1' ? '@modelcontextprotocol/sdk/client' : '@modelcontextprotocol/client';
    const { Client } = await import(values.sdk === '1' ? `${sdk}/index.js` : sdk);
    const { StdioClientTransport } = await import(values.sdk === '1' ? `${sdk}/stdio.js` : `${sdk}/stdio`);
    const mode = /^\d/.test(values.mode) ? { pin: values.mode } : values.mode;
    const client = new Client(name, values.sdk === '1' ? {} : { versionNegotiation: { mode } });
    const Recorded = recorded(StdioClientTransport);
    await client.connect(new Recorded(command, via));
    return client;
};

const call = async (client, name, args) => client.callTool({ name, arguments: args });
const text = (result) => {
    assert(!result.isError, JSON.stringify(result).slice(0, 200));
    return result.content[0].text;
};
const times = (work) => Promise.all(Array.from({ length: CONCURRENT }, (_, index) => work(index)));

const scenarios = {
    /** Reads and writes, twenty at once, and two big files. */
    async filesystem(client, sandbox, via) {
        const names = (await client.listTools()).tools.map((tool) => tool.name);
        assert(names.includes('read_text_file'));
        await times(async (index) => {
            const path = join(sandbox, `${via}-${index}.txt`);
            const content = `${via} ${index} \u00fc\u2028 <&>\n`;
            await call(client, 'write_file', { path, content });
            assert.equal(text(await call(client, 'read_text_file', { path })), content);
        });
        for (const [name, size] of Object.entries(BIG_FILES)) {
            const path = join(sandbox, `${via}-${name}`);
            writeFileSync(path, '0123456789abcdef'.repeat(size / 16));
            assert.equal(text(await call(client, 'read_text_file', { path })).length, size);
        }
        const missing = await call(client, 'read_text_file', { path: join(sandbox, `${via}-missing.txt`) });
        assert(missing.isError);
    },
    /** Short calls overtake long ones, so answers come out of order. */
    async everything(client, sandbox, via) {
        const order = [];
        await times(async (index) => {
            const args = { duration: 0.2 + 0.02 * (CONCURRENT - index), steps: 2 };
            const slow = call(client, 'trigger-long-running-operation', args).then(() => order.push(index));
            const fast = call(client, 'echo', { message: `${via}-${index}` }).then((result) => {
                assert(text(result).includes(`${via}-${index}`));
                order.push(CONCURRENT + index);
            });
            await Promise.all([slow, fast]);
        });
        assert.notDeepEqual(order, [...order].sort((a, b) => a - b), 'no answer overtook another');
        await client.listResources();
        await client.listPrompts();
    },
    /** The servers in `servers/`, for the revision without handshake. */
    async modern(client, sandbox, via) {
        await client.listTools();
        await times(async (index) => {
            const message = `${via}-${index}`;
            assert.equal(text(await call(client, 'echo', { message })), message);
        });
        const size = 1024 * 1024;
        assert.equal(text(await call(client, 'blob', { size, marker: `${via}-blob` })).length, size);
    }
};

const ways = values.proxy.length > 0 ? { proxy: [...values.proxy, '--', ...positionals] } : {};
for (const [via, command] of Object.entries({ ...ways, own_server: positionals })) {
    const client = await connect(command, via);
    await scenarios[values.scenario](client, realpathSync(values.sandbox), via);
    await client.close();
}
