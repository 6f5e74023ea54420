"""A gRPC server of another language: bytes in, bytes out, no generated code."""

import itertools
import sys
import time
from concurrent import futures

import grpc

calls = itertools.count(1)


def say(request, context):
    context.send_initial_metadata([("server-language", "python")])
    context.set_trailing_metadata([("server-trailer", "last")])
    return request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "asked to: " + request.decode())


def slow(request, context):
    time.sleep(int(request) / 1000)
    return request


def every(request, context):
    if next(calls) % int(request) != 0:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not this time")
    return request


def count(request, context):
    return (str(n).encode() for n in range(int(request)))


def collect(requests, context):
    return b"".join(requests)


def chat(requests, context):
    return requests


handlers = {
    "Say": grpc.unary_unary_rpc_method_handler(say),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Every": grpc.unary_unary_rpc_method_handler(every),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
if server.add_insecure_port(sys.argv[1]) == 0:
    sys.exit("can't listen on " + sys.argv[1])
server.start()
print("listening on", sys.argv[1], flush=True)
server.wait_for_termination()
