"""Quantise numbers to ggml's K formats, with the bytes that its reference code gives without an importance matrix.

256 numbers make a block, 16 or 32 of them share a scale. Scales are searched by weighted least squares, group by
group; so that their last bits agree, every sum is taken number after number, and for all groups at once: a group is a
column. Source of rules and layouts: `quantize_row_q2_K_ref` … `quantize_row_q6_K_ref` in ggml-quants.c, as compiled
without fused multiply-add (which packages for plain x86-64 are).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from lowmem_layers.model.accelerators import to_float64

NUMBERS = 1 << 15  # at once; what is computed from them stays in a CPU's cache
_TINY = 1e-15  # groups without a larger number are zeros

Quantiser = Callable[[torch.Tensor], torch.Tensor]  # (blocks, 256) float32 -> (blocks, bytes of a block) uint8


def quantise_rows(rows: torch.Tensor, name: str) -> torch.Tensor:
    """Quantise rows of whole blocks. Shapes: (rows, columns) → (rows, bytes of a row), uint8."""
    blocks = rows.float().reshape(-1, 256)
    packed = [K_QUANTISERS[name](piece) for piece in blocks.split(NUMBERS // 256)]
    return torch.cat(packed).view(len(rows), -1)


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """Round half to even, as ggml does: by adding 1.5 · 2²³, whose lowest bits then are the integer."""
    return ((x + 12582912.0).view(torch.int32) & 0x7FFFFF) - 0x400000


def _over(number: float, x: torch.Tensor) -> torch.Tensor:
    """Divide a number by x; `number / x` multiplies by the rounded reciprocal, as `x / number` does on CUDA."""
    return torch.tensor(number, dtype=torch.float32, device=x.device) / x


def _codes(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Round to codes from `low` to `high`, kept as floating-point numbers."""
    return _nearest(x).clamp_(low, high).float()


def _total(terms: torch.Tensor) -> torch.Tensor:
    """Add up one after another. Shapes: (numbers, groups) → (groups,)."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total += term
    return total


def _largest(x: torch.Tensor) -> torch.Tensor:
    """Give the first number of the largest size, with its sign. Shapes: (numbers, groups) → (groups,)."""
    found = torch.zeros_like(x[0])
    for each in x:
        found = torch.where(each.abs() > found.abs(), each, found)
    return found


def _groups(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """Lay groups side by side. Shapes: (blocks, 256) → (size, groups)."""
    return blocks.reshape(-1, size).t().contiguous()


def _affine_fit(
    x: torch.Tensor, weights: torch.Tensor, top: int, first: float, n_steps: int, *, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fit x ≈ scale · code − minimum with codes from 0 to `top` (ggml's `make_qkx2_quants`).

    Each step stretches the codes a little from the best minimum so far, solves for scale and minimum, and is kept where
    the error shrinks. Shapes: `x` and `weights` (numbers, groups) → scales (groups,), minima (groups,), codes (numbers,
    groups).
    """
    low, high = x.amin(0).clamp_(max=0), x.amax(0)
    span = high - low
    sum_w, sum_x = _total(weights), _total(weights * x)

    def error(scale: torch.Tensor, minimum: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        gap = (scale * codes).add_(minimum).sub_(x)
        return _total(weights * (gap.abs_() if absolute else gap * gap))

    # 1) the whole span, cut evenly
    stretch = _over(top, span)
    scale, minimum = _over(1, stretch), low
    codes = _codes(stretch * (x - low), 0, top)
    best = error(scale, minimum, codes)
    # 2) other spans
    for step in range(n_steps + 1):
        wanted = float(np.float32(first) + np.float32(0.1) * np.float32(step) + np.float32(top))
        tried = _codes(_over(wanted, high - minimum) * (x - minimum), 0, top)
        weighted = weights * tried
        sum_l, sum_l2, sum_xl = _total(weighted), _total(weighted * tried), _total(weighted * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_minimum > 0
        new_scale = torch.where(above, sum_xl / sum_l2, new_scale)
        new_minimum = new_minimum.clamp(max=0)
        now = error(new_scale, new_minimum, tried)
        better = (determinant > 0) & (now < best)
        best, scale = torch.where(better, now, best), torch.where(better, new_scale, scale)
        minimum, codes = torch.where(better, new_minimum, minimum), torch.where(better, tried, codes)
    flat = span == 0
    return scale.masked_fill(flat, 0), 0.0 - minimum, codes.masked_fill(flat, 0)


def _stretched_fit(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit x ≈ scale · (code − 32) with codes from 0 to 63 (ggml's `make_qx_quants`, weights x²).

    Shapes: (numbers, groups) → scales (groups,), codes (numbers, groups).
    """
    largest, weighted = _largest(x), x * x
    scale, best, codes = torch.zeros_like(largest), torch.zeros_like(largest), torch.zeros_like(x)
    for step in (0, *range(-9, 0), *range(1, 10)):
        wanted = float(np.float32(32) + np.float32(0.1) * np.float32(step))
        tried = _codes(_over(-wanted, largest) * x, -32, 31)
        sum_xl, sum_l2 = _total(weighted * x * tried), _total(weighted * tried * tried)
        new_scale = sum_xl / sum_l2
        better = (sum_l2 > 0) & ((sum_xl * sum_xl > best * sum_l2) if step else True)
        scale = torch.where(better, new_scale, scale)
        best = torch.where(better, new_scale * sum_xl, best)
        codes = torch.where(better if step else torch.ones_like(better), tried + 32, codes)
    tiny = largest.abs() < _TINY
    return scale.masked_fill(tiny, 0), codes.masked_fill(tiny, 0)


def _descent_fit(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit x ≈ scale · (code − 4) with codes from 0 to 7, improving one code after another (ggml's `make_q3_quants`).

    Shapes: (numbers, groups) → scales (groups,), codes (numbers, groups).
    """
    largest, weights = _largest(x), x * x
    codes = _codes(_over(-4, largest) * x, -4, 3)
    sum_xl, sum_l2 = _total(weights * x * codes), _total(weights * codes * codes)
    for _ in range(5):
        changed = False
        for place, (number, weight) in enumerate(zip(x, weights, strict=True)):
            code = codes[place]
            # the sums without this number, the code that suits them best, and the sums with it
            rest_xl, rest_l2 = sum_xl - weight * number * code, sum_l2 - weight * code * code
            tried = _codes(number * rest_l2 / rest_xl, -4, 3)
            new_xl, new_l2 = rest_xl + weight * number * tried, rest_l2 + weight * tried * tried
            gains = new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            better = (rest_xl > 0) & (tried != code) & (new_l2 > 0) & gains
            codes[place] = torch.where(better, tried, code)
            sum_xl, sum_l2 = torch.where(better, new_xl, sum_xl), torch.where(better, new_l2, sum_l2)
            changed = changed or bool(better.any())
        if not changed:
            break
    tiny = largest.abs() < _TINY
    scale = torch.where(sum_l2 > 0, sum_xl / sum_l2, torch.zeros_like(sum_l2))
    return scale.masked_fill(tiny, 0), (codes + 4).masked_fill(tiny, 0)


def _shared(values: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write values of at least 0 as a half-precision number for a block and a code for each group.

    Shapes: (blocks, groups) → (blocks, 1) in float16, (blocks, groups) codes.
    """
    largest = values.amax(1, keepdim=True).clamp_(min=0)
    codes = _codes(_over(top, largest) * values, 0, top)
    return (largest / torch.full_like(largest, top)).half(), torch.where(largest > 0, codes, torch.zeros_like(codes))


def _final(
    blocks: torch.Tensor, steps: torch.Tensor, minima: torch.Tensor, low: int, high: int, fit: torch.Tensor
) -> torch.Tensor:
    """Round numbers by the scales as they are packed; groups whose scale became 0 keep the codes of their fit.

    Shapes: `blocks` (blocks, 256), `steps` and `minima` (blocks, groups), `fit` (numbers, groups) → (blocks, 256) in
    uint8, counted from 0.
    """
    x = blocks.view(*steps.shape, -1)  # (blocks, groups, numbers)
    codes = _codes((x + minima[..., None]) / steps[..., None], low, high) - low
    return torch.where(steps[..., None] != 0, codes, fit.t().reshape(x.shape)).to(torch.uint8).flatten(1)


def _joined(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Put runs of codes side by side into bytes. Shapes: (..., runs, numbers) → (..., numbers)."""
    joined = torch.zeros_like(codes[..., 0, :])
    for run in range(codes.shape[-2]):
        joined |= codes[..., run, :] << (bits * run)
    return joined


def _bytes(*halves: torch.Tensor) -> torch.Tensor:
    """Lay half-precision numbers out as bytes. Shapes: of each (blocks, 1) → (blocks, 2 a number)."""
    return torch.cat(halves, dim=1).contiguous().view(torch.uint8)


def q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """Quantise to `block_q2_K {uint8 scales[16]; uint8 qs[64]; half d; half dmin}`."""
    x = _groups(blocks, 16)
    scales, minima, fit = _affine_fit(x, x.abs(), 3, -0.5, 15, absolute=True)
    d, steps = _shared(scales.view(-1, 16), 15)
    dmin, offsets = _shared(minima.view(-1, 16), 15)
    codes = _final(blocks, d.float() * steps, dmin.float() * offsets, 0, 3, fit)
    packed = _joined(torch.stack([steps, offsets], dim=1).to(torch.uint8), 4)
    return torch.cat([packed, _joined(codes.view(-1, 2, 4, 32), 2).flatten(1), _bytes(d, dmin)], dim=1)


def q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """Quantise to `block_q3_K {uint8 hmask[32]; uint8 qs[64]; uint8 scales[12]; half d}`."""
    scales, fit = _descent_fit(_groups(blocks, 16))
    of = scales.view(-1, 16)
    largest = _largest(of.t())[:, None]  # (blocks, 1)
    inverse = _over(-32, largest)
    d = _over(1, inverse).masked_fill(largest == 0, 0).half()
    steps = _codes(inverse * of, -32, 31)
    codes = _final(blocks, d.float() * steps, torch.zeros_like(steps), -4, 3, fit)
    scale_codes = (steps + 32).masked_fill(largest == 0, 0).to(torch.uint8)
    low = _joined((scale_codes & 15).view(-1, 2, 8), 4)  # (blocks, 8)
    high = _joined((scale_codes >> 4).view(-1, 4, 4), 2)  # (blocks, 4)
    mask = _joined((codes >> 2).view(-1, 8, 32), 1)
    return torch.cat([mask, _joined((codes & 3).view(-1, 2, 4, 32), 2).flatten(1), low, high, _bytes(d)], dim=1)


def _with_minima(blocks: torch.Tensor, top: int, first: float, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise as Q4_K and Q5_K do: 8 groups with six bits of scale and minimum each.

    Shapes: (blocks, 256) → the first 16 bytes of a block (`half d; half dmin; uint8 scales[12]`), codes (blocks, 256).
    """
    x = _groups(blocks, 32)
    spread = (
        to_float64(_total(x * x) / 32).sqrt().float().to(x.device)
    )  # torch's own root of float32 is off in the last bit
    weights = spread + x.abs()
    scales, minima, fit = _affine_fit(x, weights, top, first, n_steps, absolute=False)
    d, steps = _shared(scales.view(-1, 8), 63)
    dmin, offsets = _shared(minima.view(-1, 8), 63)
    codes = _final(blocks, d.float() * steps, dmin.float() * offsets, 0, top, fit)
    scale, minimum = steps.to(torch.uint8), offsets.to(torch.uint8)
    late_scale, late_minimum = scale[:, 4:], minimum[:, 4:]  # of the last four groups: bits in two places
    return torch.cat(
        [
            _bytes(d, dmin),
            scale[:, :4] | ((late_scale >> 4) << 6),
            minimum[:, :4] | ((late_minimum >> 4) << 6),
            (late_scale & 15) | ((late_minimum & 15) << 4),
        ],
        dim=1,
    ), codes


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Quantise to `block_q4_K {half d; half dmin; uint8 scales[12]; uint8 qs[128]}`."""
    head, codes = _with_minima(blocks, 15, -1.0, 20)
    return torch.cat([head, _joined(codes.view(-1, 4, 2, 32), 4).flatten(1)], dim=1)


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """Quantise to `block_q5_K {half d; half dmin; uint8 scales[12]; uint8 qh[32]; uint8 qs[128]}`."""
    head, codes = _with_minima(blocks, 31, -0.5, 15)
    high = _joined((codes >> 4).view(-1, 8, 32), 1)
    return torch.cat([head, high, _joined((codes & 15).view(-1, 4, 2, 32), 4).flatten(1)], dim=1)


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """Quantise to `block_q6_K {uint8 ql[128]; uint8 qh[64]; int8 scales[16]; half d}`."""
    scales, fit = _stretched_fit(_groups(blocks, 16))
    of = scales.view(-1, 16)
    largest = _largest(of.t())[:, None]  # (blocks, 1)
    inverse = _over(-128, largest)
    d = _over(1, inverse).half()
    steps = _nearest(inverse * of).clamp_(max=127).float()
    codes = _final(blocks, d.float() * steps, torch.zeros_like(steps), -32, 31, fit)
    runs = codes.view(-1, 2, 4, 32)
    low = _joined((runs & 15).view(-1, 2, 2, 64), 4).flatten(1)
    high = _joined(runs >> 4, 2).flatten(1)
    packed = torch.cat([low, high, steps.to(torch.int8).view(torch.uint8), _bytes(d)], dim=1)
    return packed.masked_fill(largest.abs() < _TINY, 0)


K_QUANTISERS: dict[str, Quantiser] = {"q2_k": q2_k, "q3_k": q3_k, "q4_k": q4_k, "q5_k": q5_k, "q6_k": q6_k}
