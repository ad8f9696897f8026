"""Deformable attention on GPUs: softmax, locations, bilinear gather and weighted sum in one pass, by Triton.

Shapes and names are those of `piip.ops.fused`, all tensors contiguous: value (B, S, M, D), offsets
(B, Q, M, L, P, 2), logits (B, Q, M, L, P), reference (R, Q, 2). Programs lie on a grid (parts of the queries, M,
B): neighbouring threads serve one head of neighbouring queries, which read neighbouring tokens.

Arguments that both directions take: ``levels`` holds height, width and first cell of every level; ``query_height``
and ``query_width`` are the grid whose token centres the references are, unless ``reference`` holds these
(``CENTRES`` is false); ``share_y`` and ``share_x`` are its inverses; ``reference_step`` is Q where every image has
its own references, else 0. ``EXACT`` is what is computed in. ``PAIR`` 2 reads two bfloat16 values as one whole
number, which takes two instructions to tell apart instead of three. Places in tensors are counted in 64 bits,
tokens in 32. A point's four pixels go by the letters a b (upper left, upper right), c d (below them).
"""

import triton
import triton.language as tl

FAR = tl.constexpr(1.0e6)
"""Pixels beyond which (and NaN) a point is outside any map; keeps indices from overflowing."""
LOG2E = tl.constexpr(1.4426950408889634)

# Sizes of inputs, which vary: compiling a kernel again where one is 1 or a multiple of 16 would gain nothing.
_VARYING = ["levels", "query_height", "query_width", "reference_step", "queries", "cells"]


@triton.jit
def _centre(
    reference: tl.tensor,
    axis: tl.constexpr,
    column: tl.tensor,
    columns: tl.tensor,
    share: tl.tensor,
    size: tl.tensor,
    CENTRES: tl.constexpr,
    EXACT: tl.constexpr,
) -> tl.tuple:
    """Return a query's reference on an axis (0 for x) in pixels of a level: a whole number, and the rest.

    A token's centre ((column + 1/2) / columns) * size - 1/2 is a quotient of whole numbers: float32 only guesses
    its whole part, and what remains is exact whether or not the guess is one too low or too high.
    """
    if CENTRES:
        numerator = (2 * column + 1) * size + columns
        half = 0.5 * share
        whole = (numerator.to(tl.float32) * half).to(tl.int32)
        rest = (numerator - whole * (2 * columns)).to(EXACT)
        fraction = rest / (2 * columns).to(EXACT) if tl.float64 == EXACT else rest * half
        whole = whole - 1
    else:
        pixels = tl.load(reference + axis).to(tl.float64) * size - 0.5
        pixels = tl.where(tl.abs(pixels) < FAR / 2, pixels, -FAR / 2)
        below = tl.floor(pixels)
        whole = below.to(tl.int32)
        fraction = (pixels - below).to(EXACT)
    return whole, fraction


@triton.jit
def _place(fraction: tl.tensor, offset: tl.tensor) -> tl.tuple:
    """Return the pixel at the upper left of a point on one axis, and how far the point lies beyond it."""
    position = fraction + offset
    position = tl.where(tl.abs(position) < FAR, position, -FAR)
    below = tl.floor(position)
    return below.to(tl.int32), position - below


@triton.jit
def _within(pixel: tl.tensor, size: tl.tensor) -> tl.tensor:
    """Return whether a pixel lies on a map, by one comparison: as unsigned numbers, negative ones are large."""
    return pixel.to(tl.uint32, bitcast=True) < size.to(tl.uint32)


@triton.jit
def _point(
    offsets: tl.tensor,
    whole_x: tl.tensor,
    fraction_x: tl.tensor,
    whole_y: tl.tensor,
    fraction_y: tl.tensor,
    EXACT: tl.constexpr,
) -> tl.tuple:
    """Return a point's upper left pixel (x, y) and how far the point lies beyond it."""
    both = tl.load(offsets[:, None] + tl.arange(0, 2)[None, :]).to(EXACT)
    offset_x, offset_y = tl.split(both)
    x, beyond_x = _place(fraction_x, offset_x)
    y, beyond_y = _place(fraction_y, offset_y)
    return whole_x + x, whole_y + y, beyond_x, beyond_y


@triton.jit
def _shares(share: tl.tensor, dx: tl.tensor, dy: tl.tensor) -> tl.tuple:
    """Return the parts of a point's attention that its four pixels get."""
    lower = share * dy
    upper = share - lower
    return upper - upper * dx, upper * dx, lower - lower * dx, lower * dx


@triton.jit
def _masks(x: tl.tensor, y: tl.tensor, height: tl.tensor, width: tl.tensor) -> tl.tuple:
    """Return which of a point's four pixels are on the map."""
    left, right = _within(x, width), _within(x + 1, width)
    up, down = _within(y, height), _within(y + 1, height)
    return up & left, up & right, down & left, down & right


@triton.jit
def _read(
    places: tl.tensor, mask: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr
) -> tl.tensor:
    """Return values (ROWS, WIDTH), 0 where masked; whole numbers are pairs of bfloat16."""
    values = tl.load(places, mask=mask, other=0)
    if values.dtype == tl.int32:
        first = (values << 16).to(tl.float32, bitcast=True)
        second = (values & -65536).to(tl.float32, bitcast=True)
        values = tl.join(first, second).reshape(ROWS, WIDTH)
    return values.to(EXACT)


@triton.jit
def _read_pixels(
    origin: tl.tensor,
    cell: tl.tensor,
    width: tl.tensor,
    masks: tl.tuple,
    used: tl.tensor,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    EXACT: tl.constexpr,
) -> tl.tuple:
    """Return the values (ROWS, WIDTH) of a point's four pixels, the first of which is ``cell`` of its level."""
    upper = origin + (cell.to(tl.int64) * STRIDE)[:, None]
    lower = upper + width.to(tl.int64) * STRIDE
    a = _read(upper, masks[0][:, None] & used, ROWS, WIDTH, EXACT)
    b = _read(upper + STRIDE, masks[1][:, None] & used, ROWS, WIDTH, EXACT)
    c = _read(lower, masks[2][:, None] & used, ROWS, WIDTH, EXACT)
    d = _read(lower + STRIDE, masks[3][:, None] & used, ROWS, WIDTH, EXACT)
    return a, b, c, d


@triton.jit
def _add_pixels(
    origin: tl.tensor,
    cell: tl.tensor,
    width: tl.tensor,
    masks: tl.tuple,
    used: tl.tensor,
    incoming: tl.tensor,
    shares: tl.tuple,
    STRIDE: tl.constexpr,
) -> None:
    """Add the output's gradient, times a share each, to that of the values at a point's four pixels."""
    upper = origin + (cell.to(tl.int64) * STRIDE)[:, None]
    lower = upper + width.to(tl.int64) * STRIDE
    tl.atomic_add(upper, incoming * shares[0][:, None], masks[0][:, None] & used, sem="relaxed")
    tl.atomic_add(upper + STRIDE, incoming * shares[1][:, None], masks[1][:, None] & used, sem="relaxed")
    tl.atomic_add(lower, incoming * shares[2][:, None], masks[2][:, None] & used, sem="relaxed")
    tl.atomic_add(lower + STRIDE, incoming * shares[3][:, None], masks[3][:, None] & used, sem="relaxed")


@triton.jit
def _list_pixels(
    entry_cells: tl.tensor,
    entry_shares: tl.tensor,
    cell: tl.tensor,
    width: tl.tensor,
    masks: tl.tuple,
    real: tl.tensor,
    nowhere: tl.tensor,
    shares: tl.tuple,
) -> None:
    """Write what `_add_pixels` would add: four tokens, ``nowhere`` outside the map, and their shares."""
    tl.store(entry_cells, tl.where(masks[0], cell, nowhere), real)
    tl.store(entry_cells + 1, tl.where(masks[1], cell + 1, nowhere), real)
    tl.store(entry_cells + 2, tl.where(masks[2], cell + width, nowhere), real)
    tl.store(entry_cells + 3, tl.where(masks[3], cell + width + 1, nowhere), real)
    tl.store(entry_shares, shares[0], real)
    tl.store(entry_shares + 1, shares[1], real)
    tl.store(entry_shares + 2, shares[2], real)
    tl.store(entry_shares + 3, shares[3], real)


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    value: tl.tensor, reference: tl.tensor, offsets: tl.tensor, logits: tl.tensor, output: tl.tensor,
    levels: tl.tuple, query_height: tl.tensor, query_width: tl.tensor, share_y: tl.tensor,
    share_x: tl.tensor, reference_step: tl.tensor, queries: tl.tensor, cells: tl.tensor,
    CENTRES: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr,
    POINTS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr, VECTOR: tl.constexpr,
    ITEMS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """Write the attended values (B, Q, M * D).

    An item is a query and VECTOR of its head's channels: no lane is wasted on widths such as 6, 12 or 50, at the
    price that the threads of a query each compute its locations.
    """
    VECTORS: tl.constexpr = WIDTH // VECTOR
    SAMPLES: tl.constexpr = LEVELS * POINTS
    STRIDE: tl.constexpr = HEADS * WIDTH
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    query = item // VECTORS
    real = query < queries
    query = tl.minimum(query, queries - 1)
    begin = image * queries * HEADS + head
    row = query.to(tl.int64)
    logits += begin * SAMPLES + row * (HEADS * SAMPLES)
    offsets += begin * (2 * SAMPLES) + row * (HEADS * 2 * SAMPLES)
    reference = reference if CENTRES else reference + 2 * (image * reference_step + query)
    query_y = ((query.to(tl.float32) + 0.5) * share_x).to(tl.int32)
    query_x = query - query_y * query_width
    part = item % VECTORS
    value = value.to(tl.pointer_type(tl.int32)) if PAIR == 2 else value
    value += head * (WIDTH // PAIR)
    lane = (part * (VECTOR // PAIR))[:, None] + tl.arange(0, VECTOR // PAIR)[None, :]

    top = tl.load(logits).to(EXACT)
    for sample in tl.static_range(1, SAMPLES):
        top = tl.maximum(top, tl.load(logits + sample).to(EXACT))
    total = tl.full((ITEMS,), 0, EXACT)
    attended = tl.full((ITEMS, VECTOR), 0, EXACT)
    for level in tl.static_range(LEVELS):
        height, width, first = levels[3 * level], levels[3 * level + 1], levels[3 * level + 2]
        whole_x, fraction_x = _centre(reference, 0, query_x, query_width, share_x, width, CENTRES, EXACT)
        whole_y, fraction_y = _centre(reference, 1, query_y, query_height, share_y, height, CENTRES, EXACT)
        origin = value + (image * cells + first) * (STRIDE // PAIR) + lane
        for point in tl.range(POINTS, loop_unroll_factor=UNROLL, num_stages=1):
            k = level * POINTS + point
            share = tl.exp2((tl.load(logits + k).to(EXACT) - top) * LOG2E)
            total += share
            x, y, dx, dy = _point(offsets + 2 * k, whole_x, fraction_x, whole_y, fraction_y, EXACT)
            masks = _masks(x, y, height, width)
            a, b, c, d = _read_pixels(
                origin, y * width + x, width, masks, True, STRIDE // PAIR, ITEMS, VECTOR, EXACT
            )
            shares = _shares(share, dx, dy)
            attended += a * shares[0][:, None]
            attended += b * shares[1][:, None]
            attended += c * shares[2][:, None]
            attended += d * shares[3][:, None]
    attended = attended * (1 / total)[:, None]
    output += begin * WIDTH + (row * STRIDE + part * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]
    tl.store(output, attended.to(output.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=_VARYING)
def backward_kernel(
    gradient: tl.tensor, value: tl.tensor, reference: tl.tensor, offsets: tl.tensor, logits: tl.tensor,
    grad_value: tl.tensor, grad_offsets: tl.tensor, grad_logits: tl.tensor, entry_cells: tl.tensor,
    entry_shares: tl.tensor, levels: tl.tuple, query_height: tl.tensor, query_width: tl.tensor,
    share_y: tl.tensor, share_x: tl.tensor, reference_step: tl.tensor, queries: tl.tensor, cells: tl.tensor,
    CENTRES: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr,
    POINTS: tl.constexpr, EXACT: tl.constexpr, PAIR: tl.constexpr, VECTOR: tl.constexpr,
    LANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradients of offsets and logits; add up that of the values, or list what there is to add.

    A program serves ROWS queries of a head, with its channels padded to LANES, a power of two, so that threads can
    sum over them. ``grad_value`` starts at zero. Where ``ATOMIC`` is false, each of a sample's four cells goes to
    ``entry_cells`` (B, M, Q, L * P, 4), S for none, and its weight to ``entry_shares``; `collect_kernel` adds up.
    """
    SAMPLES: tl.constexpr = LEVELS * POINTS
    STRIDE: tl.constexpr = HEADS * WIDTH
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = query < queries
    query = tl.minimum(query, queries - 1)
    begin = image * queries * HEADS + head
    row = query.to(tl.int64)
    logits += begin * SAMPLES + row * (HEADS * SAMPLES)
    offsets += begin * (2 * SAMPLES) + row * (HEADS * 2 * SAMPLES)
    reference = reference if CENTRES else reference + 2 * (image * reference_step + query)
    query_y = ((query.to(tl.float32) + 0.5) * share_x).to(tl.int32)
    query_x = query - query_y * query_width
    # Reading no more at once than is added at once gives both the same layout over threads.
    lane = tl.arange(0, LANES)[None, :]
    pair = tl.max_contiguous(tl.arange(0, LANES // PAIR), VECTOR // PAIR)[None, :]
    value = value.to(tl.pointer_type(tl.int32)) if PAIR == 2 else value
    value += head * (WIDTH // PAIR)
    used = real[:, None] & (lane < WIDTH)
    pair_used = real[:, None] & (pair < WIDTH // PAIR)
    incoming = tl.load(gradient + begin * WIDTH + row[:, None] * STRIDE + lane, mask=used, other=0).to(EXACT)

    column = tl.arange(0, COLUMNS)[None, :]
    scores = tl.load(logits[:, None] + column, mask=column < SAMPLES, other=float("-inf")).to(EXACT)
    top = tl.max(scores, 1)
    shares = tl.exp2((scores - top[:, None]) * LOG2E)
    once = 1 / tl.sum(shares, 1)
    shares *= once[:, None]
    samples = tl.full((ROWS, COLUMNS), 0, EXACT)
    slopes_x = tl.full((ROWS, COLUMNS), 0, EXACT)
    slopes_y = tl.full((ROWS, COLUMNS), 0, EXACT)
    for level in tl.static_range(LEVELS):
        height, width, first = levels[3 * level], levels[3 * level + 1], levels[3 * level + 2]
        whole_x, fraction_x = _centre(reference, 0, query_x, query_width, share_x, width, CENTRES, EXACT)
        whole_y, fraction_y = _centre(reference, 1, query_y, query_height, share_y, height, CENTRES, EXACT)
        origin = image * cells + first
        for point in tl.range(POINTS, loop_unroll_factor=UNROLL, num_stages=1):
            k = level * POINTS + point
            share = tl.exp2((tl.load(logits + k).to(EXACT) - top) * LOG2E) * once
            x, y, dx, dy = _point(offsets + 2 * k, whole_x, fraction_x, whole_y, fraction_y, EXACT)
            masks = _masks(x, y, height, width)
            cell = y * width + x
            a, b, c, d = _read_pixels(
                value + origin * (STRIDE // PAIR) + pair,
                cell, width, masks, pair_used, STRIDE // PAIR, ROWS, LANES, EXACT,
            )  # fmt: skip
            a, b = tl.sum(a * incoming, 1), tl.sum(b * incoming, 1)
            c, d = tl.sum(c * incoming, 1), tl.sum(d * incoming, 1)
            above, below = a + dx * (b - a), c + dx * (d - c)
            chosen = column == k
            samples = tl.where(chosen, (above + dy * (below - above))[:, None], samples)
            slopes_x = tl.where(chosen, (share * ((b - a) + dy * ((d - c) - (b - a))))[:, None], slopes_x)
            slopes_y = tl.where(chosen, (share * (below - above))[:, None], slopes_y)
            parts = _shares(share, dx, dy)
            if ATOMIC:
                target = grad_value + origin * STRIDE + head * WIDTH + lane
                _add_pixels(target, cell, width, masks, used, incoming, parts, STRIDE)
            else:
                entry = (((image * HEADS + head) * queries + row) * SAMPLES + k) * 4
                _list_pixels(
                    entry_cells + entry, entry_shares + entry, first + cell, width, masks, real, cells, parts
                )
    filled = real[:, None] & (column < SAMPLES)
    grad_offsets += begin * (2 * SAMPLES) + row * (HEADS * 2 * SAMPLES)
    grad_offsets = (grad_offsets[:, None] + 2 * column)[:, :, None] + tl.arange(0, 2)[None, None, :]
    slopes = tl.join(slopes_x, slopes_y).to(grad_offsets.dtype.element_ty)
    tl.store(grad_offsets, slopes, filled[:, :, None])
    grad_logits += begin * SAMPLES + row * (HEADS * SAMPLES)
    mean = tl.sum(shares * samples, 1)
    slopes = (shares * (samples - mean[:, None])).to(grad_logits.dtype.element_ty)
    tl.store(grad_logits[:, None] + column, slopes, filled)


@triton.jit(do_not_specialize=["queries", "cells"])
def collect_kernel(
    gradient: tl.tensor,
    shares: tl.tensor,
    order: tl.tensor,
    bounds: tl.tensor,
    grad_value: tl.tensor,
    queries: tl.tensor,
    cells: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SAMPLES: tl.constexpr,
    EXACT: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Write the gradient of ROWS tokens of a head: the sum of their entries, always in the same order.

    Args:
        gradient: Of the output, (B, Q, M * D).
        shares: Weights of all entries, (B * M, Q * L * P * 4).
        order: Numbers of the entries, sorted by token, like ``shares``.
        bounds: Where the entries of every token begin among these, (B * M, S + 1).
        grad_value: (B, S, M, D).
        queries: Q.
        cells: S.
        HEADS: M.
        WIDTH: D.
        SAMPLES: L * P.
        EXACT: What is summed in.
        LANES: D padded to a power of two.
        ROWS: Tokens of a program.
    """
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = cell < cells
    lane = tl.arange(0, LANES)[None, :]
    used = real[:, None] & (lane < WIDTH)
    group = image * HEADS + head
    bounds += group * (cells + 1) + cell
    start = tl.load(bounds, real, other=0)
    count = tl.load(bounds + 1, real, other=0) - start
    entries = group * queries * (SAMPLES * 4)
    gradient += (image * queries * HEADS + head) * WIDTH + lane
    total = tl.full((ROWS, LANES), 0, EXACT)
    for step in range(tl.max(count, 0)):
        known = step < count
        entry = tl.load(order + entries + start + step, known, other=0)
        share = tl.load(shares + entries + entry, known, other=0)
        query = (entry // (SAMPLES * 4)) * (HEADS * WIDTH)
        total += tl.load(gradient + query[:, None], known[:, None] & used, other=0).to(EXACT) * share[:, None]
    grad_value += ((image * cells + cell) * HEADS + head)[:, None] * WIDTH + lane
    tl.store(grad_value, total.to(grad_value.dtype.element_ty), used)
