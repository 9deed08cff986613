"""Writes the golden vectors: clamped SwiGLU in both rounding modes.

    pip install -r requirements.txt && python generate.py

Each file holds `input` [T, 2d] and `output` [T, d] in one type. The file's name gives the type, the
limit of `silu_and_mul_with_clamp` and the mode. `official` is evaluated in float64 and rounded
once. `eager` is what PyTorch's eager mode makes of the same input on a CPU, operator by operator,
each rounding to the type; there is none for f32, where nothing is rounded between and PyTorch's
exponential is an approximation.
"""

import json
import pathlib
import struct

import ml_dtypes
import numpy as np
import torch

ROWS, D = 24, 32
TYPES = {"bf16": ("BF16", ml_dtypes.bfloat16), "f16": ("F16", np.float16), "f32": ("F32", np.float32)}
LIMITS = {"0.5": 0.5, "10": 10.0}


def rounded(x, dtype):
    """To nearest, ties to even, in one rounding: through a float32 rounded to odd."""
    if dtype == np.float32:
        return x.astype(np.float32)
    near = x.astype(np.float32)
    wide = near.astype(np.float64)
    bits = near.view(np.uint32)
    away = np.where((wide > x) == (x > 0), bits - 1, bits + 1).astype(np.uint32)
    keep = (wide == x) | np.isnan(x) | (bits & 1 == 1)
    return np.where(keep, bits, away).astype(np.uint32).view(np.float32).astype(dtype)


def official(gate, up, limit):
    gate = np.where(gate > limit, limit, gate)  # keeps NaN
    up = np.where(up > limit, limit, np.where(up < -limit, -limit, up))
    e = np.exp(-np.abs(gate))
    with np.errstate(invalid="ignore"):
        return np.where(gate < 0, gate * e, gate) / (1 + e) * up


def eager(x, limit):
    torch_type = torch.float16 if x.dtype == np.float16 else torch.bfloat16
    gate, up = torch.from_numpy(x.view(np.int16)).view(torch_type).chunk(2, dim=-1)
    y = torch.nn.functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
    return y.view(torch.int16).numpy().view(x.dtype)


def tensors(dtype, limit, rng):
    x = rng.uniform(-3 * limit, 3 * limit, (ROWS, 2 * D))
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, limit, -limit, 2 * limit, -2 * limit]
    x[0, : len(special)] = special
    x[1, D : D + len(special)] = special
    x = x.astype(dtype)
    wide = x.astype(np.float64)
    return {"input": x, "output": rounded(official(wide[:, :D], wide[:, D:], limit), dtype)}


def save(path, name, tensors):
    header, data = {}, b""
    for key, value in tensors.items():
        raw = value.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": name, "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    here = pathlib.Path(__file__).parent
    rng = np.random.default_rng(20260424)
    for type_name, (name, dtype) in TYPES.items():
        for limit_name, limit in LIMITS.items():
            vectors = tensors(dtype, limit, rng)
            stem = f"{type_name}-limit-{limit_name}"
            save(here / f"{stem}-official.safetensors", name, vectors)
            if dtype != np.float32:
                vectors["output"] = eager(vectors["input"], limit)
                save(here / f"{stem}-eager.safetensors", name, vectors)


if __name__ == "__main__":
    main()
