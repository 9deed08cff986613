"""Compiles a source with NVRTC: nvrtc.py NVRTC SOURCE IMAGE --gpu-architecture=TARGET FLAGS...

Writes the image: machine code for a target sm_*, PTX for compute_*. Prints the compiler's log.
"""

import ctypes
import sys

library, source, target, *flags = sys.argv[1:]
nvrtc = ctypes.CDLL(library)
nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p


def call(name, *arguments):
    code = getattr(nvrtc, name)(*arguments)
    if code != 0:
        sys.exit(f"{source}: {name}: {nvrtc.nvrtcGetErrorString(code).decode()}")


def text(of):
    """What nvrtcGet... gives, whose length nvrtcGet...Size gives."""
    size = ctypes.c_size_t()
    call(f"nvrtcGet{of}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call(f"nvrtcGet{of}", program, buffer)
    return buffer.raw


program = ctypes.c_void_p()
with open(source, "rb") as file:
    code = file.read()
call("nvrtcCreateProgram", ctypes.byref(program), code, source.encode(), 0, None, None)
options = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
failed = nvrtc.nvrtcCompileProgram(program, len(flags), options)
log = text("ProgramLog").rstrip(b"\0").decode()
if failed:
    sys.exit(log)
print(log)
is_text = any(flag.startswith("--gpu-architecture=compute_") for flag in flags)
with open(target, "wb") as file:
    file.write(text("PTX").rstrip(b"\0") if is_text else text("CUBIN"))
