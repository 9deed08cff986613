"""PyTorch's MLP of V4-Flash (H 4096, I 2048) on the CPU in bf16, beside which the bench `mlp` is read.

    python3 crates/bench/benches/mlp_peer.py [T ...]

Weights are cold as there: copies of more than 160 MB take turns. Prints rows as the benches do.
"""

import statistics
import sys
import time

import torch

H, I = 4096, 2048
COPIES = 4
SECONDS = 0.1
ROUNDS = 5


def forward(x, weights):
    gate_up, down = weights
    gate, up = torch.nn.functional.linear(x, gate_up).chunk(2, dim=-1)
    act = torch.nn.functional.silu(gate.clamp(max=10)) * up.clamp(-10, 10)
    return torch.nn.functional.linear(act, down)


def median(x, copies):
    """The median of the calls in about SECONDS."""
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        forward(x, copies[len(times) % len(copies)])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    tokens = [int(word) for word in sys.argv[1:]] or [1, 4, 16, 64, 256, 1024]
    torch.manual_seed(1)
    shapes = [(2 * I, H), (H, I)]
    make = lambda shape: (torch.randn(shape) / 32).to(torch.bfloat16)
    copies = [[make(shape) for shape in shapes] for _ in range(COPIES)]
    version, threads = torch.__version__, torch.get_num_threads()
    with torch.inference_mode():
        for t in tokens:
            x = torch.randn(t, H).to(torch.bfloat16)
            forward(x, copies[0])
            ms = statistics.median(median(x, copies) for _ in range(ROUNDS)) * 1e3
            print(f'"mlp, PyTorch {version}, {threads} threads",bf16 T={t},time,ms,{ms:.4g}', flush=True)


main()
