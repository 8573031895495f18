"""Colour profiles for tests: made of primaries and a gamma, and the values that they stand for.

The other direction of what the product does, by the standards' formulas and without its libraries:
ICC.1:2022 (the layout), B. Lindbloom (the matrices), IEC 61966-2-1 (sRGB's curve).
"""

import struct

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))


def _times(left, right):
    return [[sum(a * b for a, b in zip(r, c, strict=True)) for c in zip(*right, strict=True)]
            for r in left]  # fmt: skip


def _inverse(m):
    (a, b, c), (d, e, f), (g, h, i) = m
    rows = [[e * i - f * h, c * h - b * i, b * f - c * e],
            [f * g - d * i, a * i - c * g, c * d - a * f],
            [d * h - e * g, b * g - a * h, a * e - b * d]]  # fmt: skip
    determinant = a * rows[0][0] + b * rows[1][0] + c * rows[2][0]
    return [[v / determinant for v in row] for row in rows]


def _xyz(x, y):
    return (x / y, 1.0, (1 - x - y) / y)


def to_xyz(primaries, white=D65):
    """The matrix from linear RGB to XYZ, its white adapted to D50."""
    columns = [list(row) for row in zip(*(_xyz(*one) for one in primaries), strict=True)]
    amounts = _times(_inverse(columns), [[v] for v in _xyz(*white)])
    matrix = [[row[n] * amounts[n][0] for n in range(3)] for row in columns]
    cones = [_times(_BRADFORD, [[v] for v in w]) for w in (_xyz(*white), D50)]
    scale = [[cones[1][n][0] / cones[0][n][0] if n == m else 0 for m in range(3)] for n in range(3)]
    return _times(_times(_times(_inverse(_BRADFORD), scale), _BRADFORD), matrix)


def _fixed(value):
    return struct.pack(">i", round(value * 65536))


def _profile(space, tags):
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, body in tags:
        body += b"\0" * (-len(body) % 4)
        table += name + struct.pack(">II", start + len(data), len(body))
        data += body
    head = struct.pack(">4xI4s4s4s12x4s28x", 0x04000000, b"mntr", space, b"XYZ ", b"acsp")
    head += b"".join(map(_fixed, D50))
    body = head.ljust(124, b"\0") + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(body) + 4) + body


def _curve(gamma):
    return b"para" + bytes(8) + _fixed(gamma)


def rgb_profile(primaries, gamma=2.2, white=D65):
    """An ICC profile of an RGB space with these primaries."""
    matrix = to_xyz(primaries, white)
    colorants = [
        (name, b"XYZ " + bytes(4) + b"".join(_fixed(row[n]) for row in matrix))
        for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    ]
    curves = [(name, _curve(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return _profile(b"RGB ", [*colorants, *curves])


def grey_profile(gamma):
    """An ICC profile of grey with this gamma."""
    white = b"XYZ " + bytes(4) + b"".join(map(_fixed, D50))
    return _profile(b"GRAY", [(b"wtpt", white), (b"kTRC", _curve(gamma))])


def in_srgb(rgb, primaries, gamma=2.2, white=D65):
    """What sRGB shows for a colour of that space: three numbers from 0 to 255."""
    linear = [[(v / 255) ** gamma] for v in rgb]
    found = _times(_times(_inverse(to_xyz(SRGB)), to_xyz(primaries, white)), linear)
    return tuple(round(255 * _encoded(min(1.0, max(0.0, v[0])))) for v in found)


def _encoded(light):
    return light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
