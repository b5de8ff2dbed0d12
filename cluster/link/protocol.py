"""What both ends of a link agree on besides the messages: version, metadata, times, sizes."""

from __future__ import annotations

LINK_VERSION = 2
TOKEN_KEY = "x-link-token"

SILENCE_LIMIT_S = 5.0
"""A peer that says nothing for this long counts as gone."""
BUSY_HEARTBEAT_S = 0.1
"""Longest time between two frames of a replica to a router with streams in flight."""
IDLE_HEARTBEAT_S = 1.0

FRAME_BUDGET_BYTES = 8 << 20
"""A frame takes no further submit once it is this large; the rest goes into the next one.

64 prompts of 32,768 tokens (at most 3 bytes each up to an id of 2 million) still fit into one.
"""
FRAME_TOKENS = 16_384
"""A replica's frame takes no further delta once it has this many tokens (of outputs, and of
prompts if their logprobs are wanted); the rest goes into the next one.

A token with the logprobs of 20 others has about 250 bytes, so that a frame has about 4 MB.
"""
MAX_MESSAGE_BYTES = 32 << 20
"""Largest frame either end accepts: a full budget and one prompt of 6 million tokens."""

# A dead peer is noticed by heartbeats (routers) and by these pings (replicas) alike. No ping
# needs data in between, and a server that allowed fewer pings would hang up on its routers.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it, a peer stays for a minute
    ("grpc.http2.max_pings_without_data", 0),
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
)
