"""Traversal: every op is one launch over all tensors of a list. Knows no formula.

A list is cut into chunks of CHUNK elements. Its table holds a few words for itself, then row by row what is known of
the tensors for long, then the tensor of each chunk. `gradients` holds the addresses of the gradients, 0 where there is
none. A program takes whole chunks.

Where all addresses in use are multiples of 16, all elements but the last few go in accesses of 128 bits. The compiler
knows that of a pointer only if it is said after the cast; said in one branch of a pointer made outside, it would hold
in the other branch too. So `_at` is called anew in each. V is 16 bytes of the widest dtype in use, in elements.

A loop `for cut in (1, 4)` is unrolled: 1 is the chunk in wide accesses, 4 what is left, in quarters of a chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sharpkern.backend.triton.correction import summed
from sharpkern.backend.triton.philox import normals, rounding_bits, stochastic

HEAD = tl.constexpr(3)  # words before the rows: the ticket, then the two halves of the seed
ROWS = ("weight", "saved", "source", "fisher", "m", "v", "first", "numel", "start", "run", "pitch", "chunk")
WEIGHT, SAVED, SOURCE, FISHER, M, V_, FIRST, NUMEL, START, RUN, PITCH, FIRST_CHUNK = map(tl.constexpr, range(len(ROWS)))
MAP = tl.constexpr(len(ROWS))
# A kernel is compiled anew for integers that are 1, of 32 bits or multiples of 16, and in a tuple nothing turns that
# off. Twice a word and this is none of them.
BIAS = tl.constexpr(2**62 + 1)
FOLD = tl.constexpr(1024)  # values at a time, where one program goes through all of them


@triton.jit(do_not_specialize=["table", "first", "count"])
def write(table, first, count, words):
    """Puts words into a table. They are arguments: a captured copy would read its source again at every replay."""
    for i in tl.static_range(len(words)):
        if i < count:
            tl.store(table + first + i, (words[i] - BIAS) // 2)


@triton.jit
def _get(table, count, ROW: tl.constexpr, tensor):
    return tl.load(table + HEAD + ROW * count + tensor)


@triton.jit
def _place(table, count, tensor, CUT: tl.constexpr):
    """Where a tensor lies in the flattened parameters: index of the first element, run and pitch."""
    start = _get(table, count, START, tensor)
    run, pitch = start, start
    if CUT:
        run, pitch = _get(table, count, RUN, tensor), _get(table, count, PITCH, tensor)
    return start, run, pitch


@triton.jit
def _number(x, LOADED: tl.constexpr):
    """A scalar argument, or what it points to, as float32."""
    if LOADED:
        x = tl.load(x)
    return tl.cast(x, tl.float32)


@triton.jit
def _taken(g, take, TAKES: tl.constexpr):
    """Gradients as float32, unscaled and clipped; what is not finite stays so."""
    g = g.to(tl.float32)
    if TAKES:
        g = tl.load(take).to(tl.float32) * g
        bound = tl.load(take + 1).to(tl.float32)
        g = tl.where(_is_finite(g), tl.minimum(tl.maximum(g, -bound), bound), g)
    return g


@triton.jit
def _is_finite(x):
    return x - x == 0


@triton.jit
def _at(address, TYPE: tl.constexpr, V: tl.constexpr, cut: tl.constexpr):
    pointer = address.to(tl.pointer_type(TYPE))
    if cut == 1:
        pointer = tl.multiple_of(pointer, min(16, V * TYPE.primitive_bitwidth // 8))
    return pointer


@triton.jit
def _split(table, count, tensor, chunk, addresses, V: tl.constexpr, CHUNK: tl.constexpr):
    """First element of a chunk, where wide accesses end, a multiple of V, and where it ends; `addresses` are or-ed."""
    n = _get(table, count, NUMEL, tensor)
    first = (chunk - _get(table, count, FIRST_CHUNK, tensor)) * CHUNK
    whole = (n // V) * (addresses % 16 == 0).to(tl.int64) * V
    return first, whole, tl.minimum(first + CHUNK, n)


@triton.jit
def _is_last(ticket):
    """Whether all other programs have been here; what they read and wrote before is done then."""
    tl.debug_barrier()
    last = tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket, 0)
    tl.debug_barrier()
    return last


@triton.jit(do_not_specialize=["table", "gradients", "take", "partials", "steps", "total", "count", "chunks", "share"])
def sq_norm(
    table, gradients, take, partials, steps, total, count, chunks, share, scalars,
    COVARIANCE: tl.constexpr, DIRECTION: tl.constexpr, W: tl.constexpr, G: tl.constexpr, EXACT: tl.constexpr,
    READS_W: tl.constexpr, STATE: tl.constexpr, READS_STEP: tl.constexpr, ADD: tl.constexpr, TAKES: tl.constexpr,
    V: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """total ← Σ s g² or (s g)², on top of what there was with ADD: float32 in a program, float64 over programs."""
    program = tl.program_id(0)
    sums, rest = tl.zeros([CHUNK], tl.float32), tl.zeros([CHUNK // 4], tl.float32)
    for chunk in range(program * share, tl.minimum(chunks, (program + 1) * share)):
        tensor = _get(table, count, MAP, chunk)
        g = tl.load(gradients + tensor)
        if g != 0:
            w, f, step = g, g, 1.0
            if READS_STEP:
                step = tl.load(steps + tensor)
            if READS_W:
                w = _get(table, count, EXACT, tensor)
            if STATE:
                f = _get(table, count, FISHER, tensor)
            first, whole, end = _split(table, count, tensor, chunk, g | w | f, V, CHUNK)
            for cut in tl.static_range(1, 5, 3):
                limit = whole if cut == 1 else end
                for j in range(first if cut == 1 else tl.maximum(first, whole), tl.minimum(limit, end), CHUNK // cut):
                    i = j + tl.arange(0, CHUNK // cut)
                    inside = i < limit
                    gradient = _taken(tl.load(_at(g, G, V, cut) + i, inside, 0.0), take, TAKES)
                    weight, fisher = gradient, gradient
                    if READS_W:
                        weight = tl.load(_at(w, W, V, cut) + i, inside, 0.0).to(tl.float32)
                    if STATE:
                        fisher = tl.load(_at(f, tl.float32, V, cut) + i, inside, 0.0)
                    s, fisher = COVARIANCE(weight, gradient, fisher, step, scalars)
                    other = gradient
                    if DIRECTION:
                        s, other = s * gradient, s
                    if cut == 1:
                        sums = tl.where(inside, tl.fma(s, gradient * other, sums), sums)
                    else:
                        rest = tl.where(inside, tl.fma(s, gradient * other, rest), rest)
    tl.store(partials + program, (tl.sum(sums) + tl.sum(rest)).to(tl.float64))
    if _is_last(table):
        parts = tl.zeros([FOLD], tl.float64)
        for j in range(0, tl.num_programs(0), FOLD):
            i = j + tl.arange(0, FOLD)
            parts += tl.load(partials + i, i < tl.num_programs(0), 0.0, cache_modifier=".cg")
        result = tl.sum(parts)
        if ADD:
            result += tl.load(total)
        tl.store(total, result)


@triton.jit(
    do_not_specialize=[
        "table",
        "gradients",
        "take",
        "draws",
        "steps",
        "total",
        "rho",
        "worst",
        "noise",
        "again",
        "count",
    ]
)
def ascend(
    table, gradients, take, draws, steps, total, rho, worst, noise, again, count, scalars,
    COVARIANCE: tl.constexpr, KEPT: tl.constexpr, W: tl.constexpr, G: tl.constexpr,
    READS_STEP: tl.constexpr, STATE: tl.constexpr, MASTER: tl.constexpr, WORST: tl.constexpr, NOISE: tl.constexpr,
    AGAIN: tl.constexpr, KEEPS_FIRST: tl.constexpr, TRACK: tl.constexpr, COUNTS: tl.constexpr, ROUNDS: tl.constexpr,
    CUT: tl.constexpr, RHO_LOADED: tl.constexpr, TAKES: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """w0 ← w, w ← w + rho (worst s g / sqrt(total) + noise sqrt(s) η); with AGAIN no copy, and w0 is the source."""
    square, runs = 0.0, True
    if WORST:
        square = tl.load(total)
        runs = _is_finite(square)
    if runs:
        unit = _number(rho, RHO_LOADED)
        scale, sigma = 0.0, noise * unit
        still = sigma == 0
        if WORST:
            reach = (worst * unit).to(tl.float64)
            scale = tl.where(square > 0, reach / tl.sqrt(square), 0.0).to(tl.float32)
            still = still & (scale == 0)
        chunk = tl.program_id(0)
        tensor = _get(table, count, MAP, chunk)
        draw, step, g, moves = 0, 1.0, 1, True
        if WORST:
            g = tl.load(gradients + tensor)
            moves = g != 0
        if COUNTS:
            draw = tl.load(draws)
        if READS_STEP:
            step = tl.load(steps + tensor)
        if moves:
            w, w0 = _get(table, count, WEIGHT, tensor), _get(table, count, SOURCE if AGAIN else SAVED, tensor)
            f, h = w, w
            if STATE:
                f = _get(table, count, FISHER, tensor)
            if KEEPS_FIRST:
                h = _get(table, count, FIRST, tensor)
            used = w | w0 | f | h
            if WORST:
                used = used | g
            first, whole, end = _split(table, count, tensor, chunk, used, V, CHUNK)
            for cut in tl.static_range(1, 5, 3):
                limit = whole if cut == 1 else end
                for j in range(first if cut == 1 else tl.maximum(first, whole), tl.minimum(limit, end), CHUNK // cut):
                    i = j + tl.arange(0, CHUNK // cut)
                    inside = i < limit
                    if WORST:
                        raw = tl.load(_at(g, G, V, cut) + i, inside, 0.0)
                        gradient = _taken(raw, take, TAKES)
                        if KEEPS_FIRST:
                            tl.store(_at(h, G, V, cut) + i, raw, i < limit * (h != 0).to(tl.int64))
                    else:
                        gradient = tl.zeros([CHUNK // cut], tl.float32)
                    if MASTER:
                        exact = tl.load(_at(w0, tl.float32, V, cut) + i, inside, 0.0)
                    elif AGAIN:
                        exact = tl.load(_at(w0, W, V, cut) + i, inside, 0.0).to(tl.float32)
                    else:
                        weight = tl.load(_at(w, W, V, cut) + i, inside, 0.0)
                        tl.store(_at(w0, W, V, cut) + i, weight, inside)
                        exact = weight.to(tl.float32)
                    fisher = gradient
                    if STATE:
                        fisher = tl.load(_at(f, tl.float32, V, cut) + i, inside, 0.0)
                    s, fisher = COVARIANCE(exact, gradient, fisher, step, scalars)
                    moved = exact
                    if WORST:
                        moved = tl.fma(scale, s * gradient, moved)
                        if TRACK and KEPT is not None:
                            tl.store(_at(f, tl.float32, V, cut) + i, KEPT(gradient, fisher, scale, scalars), inside)
                    place = _place(table, count, tensor, CUT)
                    if NOISE:
                        eta = normals(table + 1, draw + again, place, j, CHUNK // cut, CUT)
                        moved = tl.fma(sigma * tl.sqrt(s), eta, moved)
                    if ROUNDS:
                        random = rounding_bits(table + 1, draw + again, place, j, CHUNK // cut, CUT)
                        moved = stochastic(moved, random, W)
                    # w + 0 would turn -0 into 0
                    if AGAIN:
                        tl.store(_at(w, W, V, cut) + i, tl.where(still, exact, moved).to(W), inside)
                    else:
                        tl.store(_at(w, W, V, cut) + i, moved.to(W), i < limit * (still == 0).to(tl.int64))
        if COUNTS and TRACK and _is_last(table):
            tl.store(draws, draw + 1)


@triton.jit
def _give_back(
    table, count, tensor, chunk, W: tl.constexpr, MASTER: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr
):
    """w ← w0 for one chunk, rounded where w0 is a float32 weight."""
    w, w0 = _get(table, count, WEIGHT, tensor), _get(table, count, SOURCE, tensor)
    if w != w0:
        first, whole, end = _split(table, count, tensor, chunk, w | w0, V, CHUNK)
        for cut in tl.static_range(1, 5, 3):
            limit = whole if cut == 1 else end
            for j in range(first if cut == 1 else tl.maximum(first, whole), tl.minimum(limit, end), CHUNK // cut):
                i = j + tl.arange(0, CHUNK // cut)
                exact = tl.load(_at(w0, tl.float32 if MASTER else W, V, cut) + i, i < limit)
                tl.store(_at(w, W, V, cut) + i, exact.to(W), i < limit)


@triton.jit(do_not_specialize=["table", "total", "count"])
def restore(table, total, count, W: tl.constexpr, MASTER: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr):
    """w ← w0."""
    if _is_finite(tl.load(total)):
        chunk = tl.program_id(0)
        _give_back(table, count, _get(table, count, MAP, chunk), chunk, W, MASTER, V, CHUNK)


@triton.jit(
    do_not_specialize=[
        *("table", "gradients", "take", "draws", "pairs", "steps", "total", "second"),
        *("lr", "radius", "count", "pair_count"),
    ]
)
def descend(
    table, gradients, take, draws, pairs, steps, total, second, lr, radius, count, pair_count,
    settings, scalars, others,
    UPDATE: tl.constexpr, CORRECTION: tl.constexpr, W: tl.constexpr, G: tl.constexpr, STATES: tl.constexpr,
    READS_FIRST: tl.constexpr, READS_F: tl.constexpr, READS_EPSILON: tl.constexpr, MOVES: tl.constexpr,
    ESTIMATES: tl.constexpr, MASTER: tl.constexpr, READS_STEP: tl.constexpr, LR_LOADED: tl.constexpr,
    CUT: tl.constexpr, RADIUS_LOADED: tl.constexpr, TAKES: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """w ← update(w0, g), state in place; without a gradient, or where `second` is not finite, w ← w0.

    With ESTIMATES the gradient is made of the draws, for all tensors.
    """
    square = tl.load(total)
    if _is_finite(square):
        update = _is_finite(tl.load(second))
        chunk = tl.program_id(0)
        tensor = _get(table, count, MAP, chunk)
        g, draw, has = 1, 0, True
        if ESTIMATES:
            draw = tl.load(draws)
        else:
            g = tl.load(gradients + tensor)
            has = g != 0
        if update & has:
            w, w0 = _get(table, count, WEIGHT, tensor), _get(table, count, SOURCE, tensor)
            f, h, m, v, step = w, w, w, w, 1.0
            if READS_FIRST:
                h = _get(table, count, FIRST, tensor)
                h = tl.where(h == 0, g, h)
            if READS_F:
                f = _get(table, count, FISHER, tensor)
            if STATES > 0:
                m = _get(table, count, M, tensor)
            if STATES > 1:
                v = _get(table, count, V_, tensor)
            if READS_STEP:
                step = tl.load(steps + tensor)
            rate, distance = _number(lr, LR_LOADED), _number(radius, RADIUS_LOADED)
            norm = tl.sqrt(square).to(tl.float32)
            used = w | w0 | f | h | m | v
            if not ESTIMATES:
                used = used | g
            first, whole, end = _split(table, count, tensor, chunk, used, V, CHUNK)
            for cut in tl.static_range(1, 5, 3):
                limit = whole if cut == 1 else end
                begin = first if cut == 1 else tl.maximum(first, whole)
                # the compiler sees that the wide accesses are no loop
                times = (first < whole).to(tl.int32) if cut == 1 else tl.cdiv(tl.maximum(end - begin, 0), CHUNK // cut)
                for turn in range(times):
                    j = begin + turn * (CHUNK // cut)
                    i = j + tl.arange(0, CHUNK // cut)
                    inside = i < limit
                    if ESTIMATES:
                        place = _place(table, count, tensor, CUT)
                        gradient, epsilon = summed(pairs, pair_count, table + 1, draw, place, j, CHUNK // cut, CUT)
                    else:
                        gradient = _taken(tl.load(_at(g, G, V, cut) + i, inside, 0.0), take, TAKES)
                        epsilon = gradient
                    exact = tl.load(_at(w0, tl.float32 if MASTER else W, V, cut) + i, inside, 0.0).to(tl.float32)
                    initial, fisher, first_moment, second_moment = gradient, gradient, gradient, gradient
                    if READS_FIRST:
                        initial = _taken(tl.load(_at(h, G, V, cut) + i, inside, 0.0), take, TAKES)
                    if READS_F:
                        fisher = tl.load(_at(f, tl.float32, V, cut) + i, inside, 0.0)
                    if READS_EPSILON:
                        epsilon = tl.load(_at(w, W, V, cut) + i, inside, 0.0).to(tl.float32) - exact
                    if CORRECTION is not None:
                        gradient, fisher = CORRECTION(
                            gradient, initial, fisher, epsilon, step, distance, norm, scalars, others
                        )
                    if MOVES:
                        tl.store(_at(f, tl.float32, V, cut) + i, fisher, inside)
                    if STATES > 0:
                        first_moment = tl.load(_at(m, tl.float32, V, cut) + i, inside, 0.0)
                    if STATES > 1:
                        second_moment = tl.load(_at(v, tl.float32, V, cut) + i, inside, 0.0)
                    new, first_moment, second_moment = UPDATE(
                        exact, gradient, initial, first_moment, second_moment, step, rate, settings, READS_FIRST
                    )
                    if STATES > 0:
                        tl.store(_at(m, tl.float32, V, cut) + i, first_moment, inside)
                    if STATES > 1:
                        tl.store(_at(v, tl.float32, V, cut) + i, second_moment, inside)
                    if MASTER:
                        tl.store(_at(w0, tl.float32, V, cut) + i, new, inside)
                    tl.store(_at(w, W, V, cut) + i, new.to(W), inside)
        else:
            _give_back(table, count, tensor, chunk, W, MASTER, V, CHUNK)
        if _is_finite(tl.load(second)):  # again: registers are short
            last = _is_last(table) if READS_STEP or ESTIMATES else chunk == 0
            if last:
                for j in range(0, count, FOLD):
                    i = j + tl.arange(0, FOLD)
                    counted = i < count
                    if not ESTIMATES:
                        counted = tl.load(gradients + i, counted, 0) != 0
                    tl.store(steps + i, tl.load(steps + i, counted) + 1, counted)
                if ESTIMATES:
                    tl.store(draws, draw + pair_count)
