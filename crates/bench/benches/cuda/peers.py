"""Times what else computes DeepSeek-V4's activation on this GPU: PyTorch eager, torch.compile, and a
Triton kernel of the usual shape (flat, fused, clamp before silu), alone and with quantization to FP8.

    python3 crates/bench/benches/cuda/peers.py [--csv]

Measured as the bench `cuda` does: a CUDA graph of many calls on inputs that are not in the L2, the
median over replays divided by the calls. Each result is compared with eager first.
"""

import sys
from csv import writer

import torch
import triton
import triton.language as tl

LIMIT = 10.0
SHAPES = [(1, 2048), (64, 3072), (1, 18432), (512, 3072), (4096, 3072), (32768, 18432)]
COLD = 160 << 20


def eager(x):
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)


def eager_quant(x):
    y = eager(x)
    groups = y.float().unflatten(-1, (-1, 128))
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(amax / 448.0)))
    codes = (groups / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return codes.flatten(-2), scale.squeeze(-1)


@triton.autotune(
    [triton.Config({"BLOCK": b}, num_warps=w) for b in (256, 512, 1024, 2048) for w in (1, 2, 4, 8)],
    key=["size", "d"],
)
@triton.jit
def fused_kernel(x, y, size, d, limit, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // d, at % d
    inside = at < size
    gate = tl.load(x + row * 2 * d + column, mask=inside).to(tl.float32)
    up = tl.load(x + row * 2 * d + d + column, mask=inside).to(tl.float32)
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    tl.store(y + at, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=inside)


def fused(x):
    t, d = x.shape[0], x.shape[1] // 2
    y = torch.empty(t, d, dtype=x.dtype, device=x.device)
    grid = lambda config: (triton.cdiv(t * d, config["BLOCK"]),)
    fused_kernel[grid](x, y, t * d, d, LIMIT)
    return y


def median(call, inputs, bytes_of_call):
    """Microseconds a call."""
    call(inputs[0])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for x in inputs[:2]:
            call(x)
    torch.cuda.synchronize()
    calls = max(len(inputs), 8 if bytes_of_call > 256 << 20 else 32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(inputs[i % len(inputs)])
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for replay in range(13):
        flush.fill_(replay)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return sorted(times[3:])[5]


COLUMNS = ["eager", "torch.compile", "Triton, fused", "torch.compile with quantize"]


def main():
    csv = "--csv" in sys.argv
    versions = f"{torch.__version__} triton {triton.__version__} {torch.cuda.get_device_name()}"
    print(versions, file=sys.stderr)
    if csv:
        rows = writer(sys.stdout, lineterminator="\n")
        rows.writerow(["section", "case", "figure", "unit", "value"])
    else:
        print("peers [us]".ljust(24), *(name.rjust(28) for name in COLUMNS))
    for t, d in SHAPES:
        bytes_of_call = 6 * t * d
        slots = max(2, min(512, COLD // bytes_of_call))
        inputs = [3 * torch.randn(t, 2 * d, dtype=torch.bfloat16, device="cuda") for _ in range(slots)]
        torch._dynamo.reset()
        compiled = torch.compile(eager, dynamic=False)
        compiled_quant = torch.compile(eager_quant, dynamic=False)
        want = eager(inputs[0]).float()
        for other in (compiled, fused):
            assert torch.allclose(other(inputs[0]).float(), want, rtol=1e-2, atol=1e-3)
        calls = (eager, compiled, fused, compiled_quant)
        times = [f"{median(call, inputs, bytes_of_call):.2f}" for call in calls]
        case = f"bf16 {t}x{d}"
        if csv:
            rows.writerows(["peers", case, name, "us", time] for name, time in zip(COLUMNS, times))
        else:
            print(case.ljust(24), *(time.rjust(28) for time in times))
        sys.stdout.flush()


main()
