"""A binary mask as bytes: plain bits, within 2 % of the entropy bound with zlib's Huffman codes, or rows and columns.

Zlib is used rather than an arithmetic coder because every language reads it, it is a standard (RFC 1950), and it is
within 2 % of the bound while an arithmetic coder is within 1 %. docs/mask_format.md describes every byte.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np

CODINGS = ("bits", "bytes", "gaps", "outer")
_SPARSE = 0.2  # below this share of the rarer value, gaps are shorter than coded bytes
_MORE = 255  # a byte of a gap that means 255 plus what follows
_BLOCK = 2**16  # bytes of gaps decoded together, so that their positions stay in the cache


def encode(mask: np.ndarray, plain: bool = False) -> tuple[str, bytes]:
    """The shortest coding of a boolean array and its bytes; ``bits`` if ``plain``, or if none is shorter."""
    bits = _bits(mask)
    if plain:
        return "bits", bits
    kept = int(np.count_nonzero(mask))
    rare = min(kept, mask.size - kept)
    if rare < _SPARSE * mask.size:
        found = {"gaps": _gaps(np.flatnonzero(mask if kept == rare else ~mask), mask.size)}
    else:
        found = {"bytes": _huffman(bits)}
    if mask.ndim == 2:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        if kept == np.count_nonzero(rows) * np.count_nonzero(columns):  # an entry is kept if its row and column are
            found["outer"] = zlib.compress(_bits(rows) + _bits(columns), 9)
    coding = min(found, key=lambda name: len(found[name]))
    return (coding, found[coding]) if len(found[coding]) < len(bits) else ("bits", bits)


def decode(coding: str, data: bytes, shape: tuple[int, ...], kept: int) -> np.ndarray:
    """The boolean array of that shape with ``kept`` True; takes the memory of that and of ``data``, inflated.

    Raises:
        ValueError: the bytes are not such a mask.
    """
    if coding not in CODINGS:
        raise ValueError(f"coding must be one of {', '.join(CODINGS)}, got {str(coding)[:20]!r}")
    size = math.prod(shape)
    if coding == "outer":
        if len(shape) != 2:
            raise ValueError(f"outer is a coding of matrices, not of the shape {shape}")
        both, split = inflate(data, sum(-(-n // 8) for n in shape)), -(-shape[0] // 8)
        rows, columns = _vector(both[:split], shape[0]), _vector(both[split:], shape[1])
        if np.count_nonzero(rows) * np.count_nonzero(columns) != kept:
            raise ValueError(f"not {kept} entries are kept")
        return rows[:, None] & columns
    if coding == "gaps":
        rare = min(kept, size - kept)
        mask = np.full(size, rare != kept)
        for positions in _positions(data, size, rare):
            mask[positions] = rare == kept
    else:
        mask = _vector(data if coding == "bits" else inflate(data, -(-size // 8)), size)
    if np.count_nonzero(mask) != kept:
        raise ValueError(f"not {kept} entries are kept")
    return mask.reshape(shape)


def _bits(mask: np.ndarray) -> bytes:
    """Entry i, in row-major order, is bit i mod 8 of byte i // 8."""
    return np.packbits(mask, bitorder="little").tobytes()


def _vector(data: bytes, size: int) -> np.ndarray:
    """The entries of `_bits`; ValueError if the bytes are not those of ``size`` entries."""
    packed = np.frombuffer(data, np.uint8)
    if len(packed) != -(-size // 8) or (size % 8 and packed[-1] >> size % 8):
        raise ValueError(f"{len(packed)} bytes, or bits beyond the last entry, for {size} entries")
    return np.unpackbits(packed, count=size, bitorder="little").view(bool)


def _gaps(positions: np.ndarray, size: int) -> bytes:
    """Golomb-Rice coding of the gaps before each position: low bits as they are, the rest in Huffman codes."""
    if not len(positions):
        return b""
    gaps = np.diff(positions, prepend=-1) - 1
    low = _low_bits(size, len(positions))
    planes = (gaps[:, None] >> np.arange(low)) & 1
    more, last = np.divmod(gaps >> low, _MORE)
    symbols = np.full(len(gaps) + int(more.sum()), _MORE, np.uint8)
    symbols[np.cumsum(more + 1) - 1] = last
    return _bits(planes.astype(bool)) + _huffman(symbols.tobytes())


def _positions(data: bytes, size: int, rare: int) -> Iterator[np.ndarray]:
    """The positions that the gaps lead to, a block at a time: those up to entry j add up to its position, less j."""
    if not rare and not data:
        return
    low = _low_bits(size, max(rare, 1))
    head = -(-rare * low // 8)
    if not 0 < rare <= 8 * (len(data) - head):  # a zlib stream with repeats can claim 1032 a byte
        raise ValueError(f"{len(data)} bytes are not those of {rare} gaps")
    symbols = np.frombuffer(inflate(data[head:], rare + size // _MORE), np.uint8)
    if np.count_nonzero(symbols != _MORE) != rare or symbols[-1] == _MORE:
        raise ValueError(f"the gaps are not {rare}")
    done, highs, lows = 0, 0, 0
    for start in range(0, len(symbols), _BLOCK):
        part = symbols[start : start + _BLOCK]
        summed = highs + np.cumsum(part, dtype=np.int64)
        found = summed[part != _MORE] << low
        first, last = done * low, (done + len(found)) * low
        planes = np.unpackbits(np.frombuffer(data[first // 8 : -(-last // 8)], np.uint8), bitorder="little")
        planes = planes[first % 8 :][: last - first].reshape(len(found), low)
        added = lows + np.cumsum(planes @ (1 << np.arange(low)), dtype=np.int64)
        found += added + np.arange(done, done + len(found))
        if len(found):
            if found[-1] >= size:
                raise ValueError("the gaps lead beyond the last entry")
            yield found
            done, lows = done + len(found), added[-1]
        highs = summed[-1]


def _low_bits(size: int, count: int) -> int:
    """How many low bits of a gap are written as they are; the mean gap then leaves 16 to 32 for the Huffman code."""
    return max(0, (size // count).bit_length() - 5)


def _huffman(data: bytes) -> bytes:
    """A zlib stream with only Huffman codes: searching a mask for repeats takes time and finds none."""
    coder = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def inflate(data: bytes, limit: int) -> bytes:
    """The content of a zlib stream, at most ``limit`` bytes; ValueError if it has more, or is damaged."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) > limit or not stream.eof or stream.unused_data:
        raise ValueError("a zlib stream of another length")
    return found
