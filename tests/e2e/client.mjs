// The JavaScript client `@kubernetes/client-node` behind kubectl's command line, as one of the clients of `make e2e`.
//
//     client.mjs exec [-i] [-t] POD -- COMMAND...
//     client.mjs attach [-i] [-t] POD
//     client.mjs port-forward POD :PORT
//
// Input, output, error output and exit code are the session's; a terminal's size is followed, which the library does
// itself. The library is found in the folder that PODGATE_NODE_CLIENT names.

import { createRequire } from 'node:module';
import net from 'node:net';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const resolve = createRequire(`${process.env.PODGATE_NODE_CLIENT}/`).resolve;
const k8s = await import(pathToFileURL(resolve('@kubernetes/client-node')));

const [verb, ...rest] = process.argv.slice(2);
const { values: flags, positionals } = parseArgs({
    args: rest,
    options: { stdin: { type: 'boolean', short: 'i' }, tty: { type: 'boolean', short: 't' } },
    allowPositionals: true,
});
const [pod, ...operands] = positionals;

const config = new k8s.KubeConfig();
config.loadFromDefault();

function fail(error) {
    process.stderr.write(`${error?.message ?? error}\n`);
    process.exit(1);
}

// Ends only when what was written has left: exit alone drops what a full pipe has not taken.
function finish(code) {
    process.stdout.write('', () => process.exit(code));
}

function exitCode(status) {
    if (status?.status === 'Success') {
        return 0;
    }
    const cause = status?.details?.causes?.find(({ reason }) => reason === 'ExitCode');
    return cause ? Number(cause.message) : fail(status?.message ?? 'the session ended without a result');
}

async function converse() {
    const tty = flags.tty ?? false;
    const stdin = flags.stdin ? process.stdin : null;
    const stderr = tty ? null : process.stderr;
    if (tty) {
        process.stdin.setRawMode(true);
    }
    let status;
    const session =
        verb === 'exec'
            ? await new k8s.Exec(config).exec(
                  'default', pod, '', operands, process.stdout, stderr, stdin, tty, (told) => (status = told))
            : await new k8s.Attach(config).attach('default', pod, '', process.stdout, stderr, stdin, tty);
    // Attach keeps the result to itself: the end of the session is all it tells.
    session.on('close', () => finish(verb === 'attach' ? 0 : exitCode(status)));
}

async function forwardPort() {
    const port = Number(operands[0].slice(1));
    const server = net.createServer({ allowHalfOpen: true }, async (local) => {
        try {
            const forward = new k8s.PortForward(config);
            const session = await forward.portForward('default', pod, [port], local, process.stderr, local);
            session.on('close', () => local.end());
        } catch (error) {
            process.stderr.write(`${error?.message ?? error}\n`);
            local.destroy();
        }
    });
    server.listen(0, '127.0.0.1', () => {
        process.stdout.write(`Forwarding from 127.0.0.1:${server.address().port} -> ${port}\n`);
    });
}

(verb === 'port-forward' ? forwardPort() : converse()).catch(fail);
