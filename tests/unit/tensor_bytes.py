"""Files of tensors made without torch, whole or spoilt on purpose."""

import json
import math
import struct

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "I64": 8,
         "BOOL": 1, "C64": 8}  # fmt: skip


def file_of(header, data=b""):
    """A file with this header, a mapping or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensors(shapes, metadata=None, dtype="F32", values=None, dtypes=None):
    """A whole file: zeros of these shapes, or the bytes given in ``values``; types by name."""
    header = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, shape in shapes.items():
        kind = (dtypes or {}).get(name, dtype)
        content = (values or {}).get(name, bytes(math.prod(shape) * BYTES[kind]))
        header[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    return file_of(header, data)


def lora(*layers, **options):
    """A whole LoRA of rank 2 with these layers."""
    shapes = {}
    for layer in layers or ("lora_unet_mid_block_attentions_0_proj_in",):
        shapes |= {
            f"{layer}.lora_down.weight": (2, 3),
            f"{layer}.lora_up.weight": (5, 2),
            f"{layer}.alpha": (),
        }
    return tensors(shapes, **options)
