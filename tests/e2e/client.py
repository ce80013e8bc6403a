"""The Python client `kubernetes` behind kubectl's command line, as one of the clients of `make e2e`.

    client.py [--v4] exec [-i] [-t] POD -- COMMAND...
    client.py [--v4] attach [-i] [-t] POD
    client.py [--v4] port-forward POD :PORT

Input, output, error output and exit code are the session's; a terminal's size is followed. `--v4` offers only
`v4.channel.k8s.io`, as versions before 33 did: that protocol cannot end the input without ending the session.
"""

import argparse
import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import tty

from kubernetes import client, config
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import (
    ERROR_CHANNEL,
    RESIZE_CHANNEL,
    STDERR_CHANNEL,
    STDIN_CHANNEL,
    STDOUT_CHANNEL,
    V4_CHANNEL_PROTOCOL,
)

# Seconds to wait for output before input is looked at.
POLL = 0.02

# Bytes read from the input at once. Output is read in between: who only writes while the other side only writes, waits
# for ever.
CHUNK = 16 * 1024


def core_v1(v4_only):
    api = client.ApiClient()
    if v4_only:
        api.set_default_header("sec-websocket-protocol", V4_CHANNEL_PROTOCOL)
    return client.CoreV1Api(api)


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def hand_out(session):
    for channel, fd in [(STDOUT_CHANNEL, 1), (STDERR_CHANNEL, 2)]:
        if data := session.read_channel(channel):
            write_all(fd, data)


def send_size(session):
    size = os.get_terminal_size(0)
    session.write_channel(RESIZE_CHANNEL, json.dumps({"Width": size.columns, "Height": size.lines}))


def exit_code(told):
    """The exit code in a result. The library's own `returncode` fails where a command could not even be started."""
    if not told:
        return "the session ended without a result"
    status = json.loads(told)
    if status["status"] == "Success":
        return 0
    codes = [cause["message"] for cause in status["details"]["causes"] if cause.get("reason") == "ExitCode"]
    return int(codes[0]) if codes else status["message"]


def converse(session, has_input, has_terminal):
    """Moves bytes until the session is over, and returns what to exit with."""
    resized = []
    if has_terminal:
        signal.signal(signal.SIGWINCH, lambda *_: resized.append(True))
        send_size(session)
    while session.is_open():
        session.update(timeout=POLL)
        hand_out(session)
        if resized:
            resized.clear()
            send_size(session)
        if has_input and session.is_open() and select.select([0], [], [], 0)[0]:
            if data := os.read(0, CHUNK):
                session.write_stdin(data)
            elif session.subprotocol == V4_CHANNEL_PROTOCOL:
                session.close()
                sys.exit("v4.channel.k8s.io can end the input only by ending the session")
            else:
                session.close_channel(STDIN_CHANNEL)
                has_input = False
    hand_out(session)
    return exit_code(session.read_channel(ERROR_CHANNEL))


def command(api, args):
    options = dict(stdin=args.i, stdout=True, stderr=not args.t, tty=args.t, _preload_content=False, binary=True)
    if args.verb == "exec":
        session = stream(api.connect_get_namespaced_pod_exec, args.pod, "default", command=args.command, **options)
    else:
        session = stream(api.connect_get_namespaced_pod_attach, args.pod, "default", **options)
    if not args.t:
        return converse(session, args.i, False)
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        return converse(session, args.i, True)
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def carry(v4_only, pod, port, local):
    # An own API object: the library swaps methods of it during the call.
    forward = portforward(core_v1(v4_only).connect_get_namespaced_pod_portforward, pod, "default", ports=str(port))
    far = forward.socket(port)

    def send():
        try:
            while data := local.recv(CHUNK):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # The other direction is over, and this one with it.

    threading.Thread(target=send, daemon=True).start()
    try:
        while data := far.recv(CHUNK):
            local.sendall(data)
    except ConnectionResetError:
        pass  # The library has closed its end with input unread, as it does after an error.
    if error := forward.error(port):
        print(error, file=sys.stderr, flush=True)
    local.shutdown(socket.SHUT_RDWR)
    local.close()


def forward_port(v4_only, pod, port):
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"Forwarding from 127.0.0.1:{listener.getsockname()[1]} -> {port}", flush=True)
    while True:
        local, _ = listener.accept()
        threading.Thread(target=carry, args=(v4_only, pod, port, local), daemon=True).start()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--v4", action="store_true")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ["exec", "attach"]:
        of_verb = verbs.add_parser(verb)
        of_verb.add_argument("-i", action="store_true")
        of_verb.add_argument("-t", action="store_true")
        of_verb.add_argument("pod")
        if verb == "exec":
            of_verb.add_argument("command", nargs="+")
    of_verb = verbs.add_parser("port-forward")
    of_verb.add_argument("pod")
    of_verb.add_argument("port", type=lambda port: int(port.removeprefix(":")))
    args = parser.parse_args()
    config.load_kube_config()
    if args.verb == "port-forward":
        return forward_port(args.v4, args.pod, args.port)
    return command(core_v1(args.v4), args)


if __name__ == "__main__":
    sys.exit(main())
