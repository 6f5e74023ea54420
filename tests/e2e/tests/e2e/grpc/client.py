"""Calls server.py: `client.py TARGET METHOD MESSAGE [METADATA...]`; prints the status, and what was said."""

import sys
import time

import grpc

target, method, message = sys.argv[1:4]
metadata = [tuple(pair.split("=", 1)) for pair in sys.argv[4:]]
channel = grpc.insecure_channel(target)
path = "/test.Echo/" + method
sent = message.encode()


def called(call, request):
    answer, details = call.with_call(request, timeout=8, metadata=metadata)
    seen = [f"{key}={value}" for key, value in (*details.initial_metadata(), *details.trailing_metadata())]
    return answer.decode(), *seen


def paced(seconds):
    """A message every tenth of a second."""
    for n in range(int(seconds) * 10):
        time.sleep(0.1)
        yield str(n).encode()


def at_once(n):
    """So many slow calls at the same time: how each ended."""
    calls = [channel.unary_unary("/test.Echo/Slow").future(b"1000", timeout=8) for _ in range(n)]
    return sorted(call.code().name for call in calls)


try:
    if method == "Count":
        said = [answer.decode() for answer in channel.unary_stream(path)(sent, timeout=8)]
    elif method == "Collect":
        said = called(channel.stream_unary(path), iter([sent, b"+", sent]))
    elif method == "Chat":
        said = [str(len([*channel.stream_stream(path)(paced(message), timeout=60)]))]
    elif method == "AtOnce":
        said = at_once(int(message))
    else:
        said = called(channel.unary_unary(path), sent)
    print("OK", *said)
except grpc.RpcError as error:
    print(error.code().name, error.details())
