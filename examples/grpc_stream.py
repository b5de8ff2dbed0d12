"""Stream a completion over gRPC: python -m examples.grpc_stream [PROMPT] [HOST:PORT]."""

import sys

import grpc

from protos.v1 import generate_pb2, generate_pb2_grpc

prompt = sys.argv[1] if len(sys.argv) > 1 else "Mr. Darcy looked at her and"
address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:9000"
sampling = generate_pb2.SamplingParams(temperature=0, max_tokens=48)
request = generate_pb2.GenerateRequest(prompt=prompt, sampling=sampling)
with grpc.insecure_channel(address) as channel:
    for chunk in generate_pb2_grpc.GenerateServiceStub(channel).GenerateStream(request):
        for choice in chunk.choices:
            print(choice.text, end="", flush=True)
print()
