#!/usr/bin/env python3
"""Bytes, steps and a simulated latency of DeepSeek-V4's feed-forward layer on 8, 16 and 64 GPUs.

`docs/ranks.py` prints the tables of docs/ranks.md; `docs/ranks.py --check docs/ranks.md` fails
unless the page holds them. Times are in microseconds, of one layer, in decode: T tokens in all, of
which every rank has all (all-reduce) or its T/ranks (all-to-all).

What is measured, what is published and what is assumed stands beside each number.
"""

import math
import sys

HOST = 8  # GPUs of a host

# Measured on an H200 (crates/bench/records): bytes a microsecond that kernels stream from memory,
# and what a whole shared expert of one token takes beyond its bytes at that rate.
STREAM = 4.4e6
KERNELS = 10.0
# Assumed until the grouped kernels are measured: the share of STREAM that they reach.
GROUPED = 0.75

# Published, NVIDIA H200: NVLink gives a GPU 450 GB/s each way; a host has eight network cards of
# 400 Gb/s, one a GPU.
NVLINK = 450e3
NETWORK = 50e3
# Published in the source of NCCL (src/graph/tuning.cc): microseconds of a call and of each step, by
# a tree with its protocol LL for small messages, and by a ring with Simple for large ones; the share
# of the bandwidth that each protocol can use.
BASE = {"tree": 4.4, "ring": 8.4}
NVLINK_STEP = {"tree": 0.52, "ring": 3.4}
NETWORK_STEP = {"tree": 5.0, "ring": 9.6}
SHARE = {"tree": 0.9 / 3.8, "ring": 1.0}
# Published by DeepEP (docs/legacy.md), low-latency kernels, 128 tokens a rank of 7168 with 8 routes:
# microseconds of dispatch (FP8) and of combine (bf16), by ranks. Its bytes scale with tokens, routes
# and width; its floor is taken as that of an empty message.
DEEPEP = {8: (77, 114), 16: (118, 195), 64: (173, 314)}
DEEPEP_BYTES = (128 * 8 * (7168 + 56 * 4), 128 * 8 * 7168 * 2)
DEEPEP_FLOOR = 15.0

MODELS = {
    "Flash": dict(hidden=4096, inner=2048, experts=256, routes=6),
    "Pro": dict(hidden=7168, inner=3072, experts=384, routes=6),
}
RANKS = (8, 16, 64)
TOKENS = (8, 64, 1024)


def all_reduce(ranks, size):
    """The faster of NCCL's two ways for `size` bytes: microseconds, and which."""
    hosts = max(1, ranks // HOST)
    inside = min(ranks, HOST)
    ways = {}
    steps = 2 * ((inside - 1) * NVLINK_STEP["tree"] * (1.8 if hosts > 1 else 1)
                 + math.log2(hosts) * NETWORK_STEP["tree"])
    rate = NVLINK if hosts == 1 else NETWORK * HOST
    ways["tree"] = BASE["tree"] + steps + 2 * size / (rate * SHARE["tree"])
    network = 2 * (hosts - 1)
    steps = (2 * (ranks - 1) - network) * NVLINK_STEP["ring"] + network * NETWORK_STEP["ring"]
    moved = 2 * (ranks - 1) / ranks * size
    ways["ring"] = BASE["ring"] + steps + moved / (rate * SHARE["ring"])
    return min((time, way) for way, time in ways.items())


def all_to_all(ranks, tokens, routes, hidden):
    """Dispatch in FP8 and combine in bf16 by DeepEP's kernels."""
    own = max(1, tokens // ranks) * routes
    sizes = (own * (hidden + hidden // 128 * 4), own * hidden * 2)
    times = 0.0
    for size, of_deepep, whole in zip(sizes, DEEPEP_BYTES, DEEPEP[ranks]):
        times += DEEPEP_FLOOR + (whole - DEEPEP_FLOOR) * size / of_deepep
    return times


def touched(experts, routes, tokens):
    """Experts that uniform routes of so many tokens touch, on average."""
    return experts * (1 - (1 - routes / experts) ** tokens)


def layer(model, ranks, tokens):
    m = MODELS[model]
    shared = 3 * m["hidden"] * m["inner"]
    expert = shared * 17 // 32
    routed = touched(m["experts"], m["routes"], tokens) * expert
    sums = 4 * tokens * m["hidden"]
    own_shared = KERNELS + shared / ranks / STREAM
    own_routed = KERNELS + routed / ranks / (STREAM * GROUPED)
    reduction, way = all_reduce(ranks, sums)
    exchange = all_to_all(ranks, tokens, m["routes"], m["hidden"])
    # One reduction serves both: shared and routed sums are added before it. With all-to-all each
    # rank has its own tokens, the whole shared expert, and time to run it behind the dispatch.
    reduced = own_shared + own_routed + reduction
    exchanged = own_routed + max(exchange, KERNELS + shared / STREAM)
    return dict(
        weights=(m["experts"] * expert + shared) / ranks / 1e6,
        sums=sums / 1e6,
        steps=f"{way}, " + (f"{2 * (ranks - 1)}" if way == "ring" else
                            f"{2 * (min(ranks, HOST) - 1 + int(math.log2(max(1, ranks // HOST))))}"),
        reduction=reduction,
        exchange=exchange,
        reduced=reduced,
        exchanged=exchanged,
    )


def tables():
    out = []
    for model in MODELS:
        out.append(f"| {model}: ranks | T | weights a rank, MB | sums, MB | all-reduce, steps | all-reduce | "
                   "all-to-all | layer, all-reduce | layer, all-to-all |")
        out.append("|---|---|---|---|---|---|---|---|---|")
        for ranks in RANKS:
            for tokens in TOKENS:
                row = layer(model, ranks, tokens)
                better = "reduced" if row["reduced"] <= row["exchanged"] else "exchanged"
                text = {k: f"{row[k]:.0f}" for k in ("reduced", "exchanged")}
                text[better] = f"**{text[better]}**"
                out.append(f"| {ranks} | {tokens} | {row['weights']:.0f} | {row['sums']:.2f} | {row['steps']} | "
                           f"{row['reduction']:.0f} | {row['exchange']:.0f} | {text['reduced']} | "
                           f"{text['exchanged']} |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        if tables() not in open(sys.argv[2], encoding="utf-8").read():
            sys.exit(f"{sys.argv[2]} does not hold what docs/ranks.py prints")
    else:
        print(tables())
