"""Stream a completion over HTTP: python -m examples.http_stream [PROMPT] [HOST:PORT]."""

import json
import sys

import httpx

prompt = sys.argv[1] if len(sys.argv) > 1 else "Mr. Darcy looked at her and"
address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:8000"
url = f"http://{address}/v1/completions"
request = {"prompt": prompt, "temperature": 0, "max_tokens": 48, "stream": True}
with httpx.stream("POST", url, json=request, timeout=None) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            for choice in json.loads(data)["choices"]:
                print(choice["text"], end="", flush=True)
print()
