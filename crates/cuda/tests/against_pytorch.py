"""Compares the dumps of the test `every_gate_against_64_ups` with PyTorch on the GPU.

    SWIGLU_DUMP=DIR cargo test -p swiglu-cuda --test cuda every_gate
    python3 crates/cuda/tests/against_pytorch.py DIR
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F

folder, failed = sys.argv[1], False
for name, dtype, mantissa, least in (
    ("bf16", torch.bfloat16, 7, -126), ("f16", torch.float16, 10, -14)
):
    def read(label):
        raw = np.fromfile(f"{folder}/{name}_{label}.bin", dtype=np.int16)
        return torch.from_numpy(raw).cuda().view(dtype)

    gates = torch.from_numpy(np.arange(65536).astype(np.uint16).view(np.int16)).cuda().view(dtype)
    ups = read("ups")[:, None]
    gate, up = gates[None, :].expand(64, -1), ups.expand(-1, 65536)
    finite = torch.isfinite(gates)
    for label in ("clamp", "plain"):
        g, u = (gate.clamp(max=10.0), up.clamp(-10.0, 10.0)) if label == "clamp" else (gate, up)
        want = F.silu(g) * u
        got = read(f"{label}_eager").reshape(64, -1)
        differ = (got.view(torch.int16) != want.view(torch.int16))[:, finite]
        print(f"{name} {label} eager: {int(differ.sum())} of {differ.numel()} finite inputs differ from PyTorch")
        failed |= bool(differ.any())

        exact = g.double() * torch.sigmoid(g.double()) * u.double()
        got = read(f"{label}_official").reshape(64, -1).double()
        exponent = torch.floor(torch.log2(exact.abs().clamp(min=2.0**-1000))).clamp(min=least)
        error = (got - exact).abs() / torch.exp2(exponent - mantissa)
        ordinary = ((gates.abs() <= 60) & (gates.abs() >= 2.0**-20) & finite)[None, :].expand(64, -1)
        ordinary = ordinary & (exact.abs() < torch.finfo(dtype).max)
        worst = float(error[ordinary].max())
        print(f"{name} {label} official: at most {worst:.4f} ulp on ordinary gates")
        failed |= worst > 0.51
sys.exit(failed)
