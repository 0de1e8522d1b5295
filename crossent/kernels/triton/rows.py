"""What the kernels of a cross entropy share: rows and tiles as they are read, the sums of a row, and what follows."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.kernels import Sums
from crossent.kernels.triton.language import (
    INFINITY,
    LOG2_E,
    class_grad,
    exp,
    finite,
    label_grad,
    label_weight,
    log1p,
    lse_slope,
    number,
    relative_to,
    row_loss,
    softcap_slope,
    tanh,
    target_weight,
)

# Arguments of kernels that are numbers like those of rows: for others than before, nothing is compiled anew. Of their
# multiples kernels are told by `How.LINE`.
COUNTS = "parts", "programs", "tiles", "by", "classes", "inner", "blocks", "rows"

# The kinds of tiles, in the order in which they are read: all of the lines are classes; some lines may be none; the
# numbers before the first and behind the last whole line of a row, of which every line of the tile has one at most; or
# these as a small tile of 2 * W lines, beside one that is the row.
WHOLE, LINES, EDGES, BESIDE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


class How(NamedTuple):
    """What a kernel is compiled for: the type of the arithmetic; a tile of T lines of W classes of R rows, and whether
    the classes take several; the kinds of target and weights, whether smoothing or probabilities give classes other
    than the label a mass, and whether there is a softcap; in which arrays the classes lie side by side; and a number
    of which the length of what lies side by side in all arrays is a multiple, and every distance between others.
    PEELED: rows begin anywhere in a line of W numbers of memory, alike in all arrays; so places count from there on.
    """

    A: Any
    T: int = 1
    W: int = 1
    R: int = 1
    LOOP: bool = False
    SOFT: bool = False
    MASS: bool = False
    WEIGHTED: bool = False
    SAMPLED: bool = False
    CAPPED: bool = False
    X_SIDE: bool = False
    T_SIDE: bool = False
    DX_SIDE: bool = False
    DT_SIDE: bool = False
    LINE: int = 1
    PEELED: bool = False


class Array(NamedTuple):
    """An array (outer, classes, inner): where it is, and its strides."""

    at: Any
    outer: Any = 0
    of_class: Any = 0
    inner: Any = 0


class Shape(NamedTuple):
    """So many classes; rows of (outer, inner), in `blocks` of R for each outer one; `rows` in all."""

    classes: int
    inner: int
    blocks: int
    rows: int


class Settings(NamedTuple):
    """As `Rows` and `LossOptions` have them; the floats by their bits, see `language.number`."""

    ignore_index: int
    first_class: int
    all_classes: int
    smoothing: int
    cap: int
    z_loss: int


class Terms(NamedTuple):
    """The floats of the settings and the number of all classes, in the type of the arithmetic; `unit` is in what q is
    given: for labels and capped logits, whose sums cannot overflow, what smoothing gives a class of weight 1.
    """

    smoothing: Any
    classes: Any
    cap: Any
    z_loss: Any
    unit: Any


class Program(NamedTuple):
    """The rows of a program, arrays (R,): outer and inner place, number, and whether there is such a row; how much it
    counts, its label among the classes here or any other number, whether the label is bad, and whether the row counts.
    """

    outer: Any
    inner: Any
    row: Any
    here: Any
    keep: Any
    label: Any
    bad: Any
    counts: Any


class Tile(NamedTuple):
    """The numbers of a tile's classes, (T, W, 1), of EDGES (T, 1, 1), BESIDE (2 * W, 1, 1), and their places in memory,
    see `How`; which of them there are, their logits, in units of the softcap if there is one, and q for rows that count
    1, in units of `Terms.unit`.
    """

    c: Any
    place: Any
    ok: Any
    z: Any
    q: Any


@triton.jit
def terms_of(settings, how: tl.constexpr):
    smoothing, classes = number(settings.smoothing, how.A), tl.cast(settings.all_classes, how.A)
    unit = tl.full((), 1.0, how.A)
    if how.CAPPED and not how.SOFT:
        unit = target_weight(0.0, 1.0, 1.0, smoothing, classes)
    return Terms(smoothing, classes, number(settings.cap, how.A), number(settings.z_loss, how.A), unit)


@triton.jit
def read_rows(outer, inner, row, here, target, samples, settings, how: tl.constexpr):
    """The `Program` of rows that are `here`. A bad label becomes -1."""
    keep, label, bad = tl.where(here, 1.0, 0.0).to(how.A), tl.full(row.shape, -1, tl.int64), row < 0
    if how.SAMPLED:
        keep = tl.load(samples + row, mask=here, other=0.0).to(how.A)
    if not how.SOFT:
        label = tl.load(target.at + row, mask=here, other=0)
        keep = tl.where(label == settings.ignore_index, 0.0, keep)
        bad = ((label < 0) | (label >= settings.all_classes)) & (keep != 0.0)
        label = tl.where(bad | (keep == 0.0), -1, label - settings.first_class)
    counts = (keep != 0.0) & (bad == 0)
    return Program(outer, inner, row, here, keep, label.to(tl.int32), bad, counts)


@triton.jit
def rows_of_block(block, target, samples, shape, settings, how: tl.constexpr):
    """The `Program` of a block of R rows."""
    outer = (block // shape.blocks).to(tl.int64)
    inner = (block % shape.blocks).to(tl.int64) * how.R + tl.arange(0, how.R)
    row = outer * shape.inner + inner
    return read_rows(outer, inner, row, inner < shape.inner, target, samples, settings, how)


@triton.jit
def rows_beside(target, samples, shape, settings, how: tl.constexpr, BLOCK: tl.constexpr):
    """The `Program` of a block of rows of which nothing is read by class."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return read_rows(row, row, row, row < shape.rows, target, samples, settings, how)


@triton.jit
def at_rows(array, program):
    """Pointers to rows, (R,)."""
    return array.at + program.outer * array.outer + program.inner * array.inner


@triton.jit
def in_lines(number, how: tl.constexpr):
    """The number, of which Triton sees that it is a multiple of LINE: of itself it looks for multiples of 16 alone, so
    that of 1,000 numbers it would load one at a time.
    """
    return number // how.LINE * how.LINE


@triton.jit
def shape_of(classes, inner, blocks, rows, how: tl.constexpr):
    """The `Shape`, whose numbers are `in_lines` where they are the length of what lies side by side."""
    if how.X_SIDE:
        classes = in_lines(classes, how)
    else:
        inner, rows = in_lines(inner, how), in_lines(rows, how)
    return Shape(classes, inner, blocks, rows)


@triton.jit
def at_classes(array, program, how: tl.constexpr):
    """As `at_rows`, of an array with classes."""
    outer, inner = in_lines(array.outer, how), array.inner
    if how.X_SIDE:
        inner = in_lines(inner, how)
    place = program.outer * outer + program.inner * inner
    if how.PEELED:
        place = place // how.W * how.W
    return array.at + place


class Span(NamedTuple):
    """The places of classes that are read: from `begin` to `end`. Those from `lo` to `hi` are whole lines if the row is
    PEELED, the others its edges; else there are no edges.
    """

    begin: Any
    lo: Any
    hi: Any
    end: Any


@triton.jit
def begin_of(array, program, how: tl.constexpr):
    """The place of a row's first class."""
    begin = 0
    if how.PEELED:
        begin = tl.sum((program.outer * array.outer + program.inner * array.inner) % how.W, 0).to(tl.int32)
    return begin


@triton.jit
def span_of(array, program, classes, how: tl.constexpr):
    """The `Span` of a row."""
    begin = begin_of(array, program, how)
    lo, hi = begin, classes
    if how.PEELED:
        lo, hi = (begin + (how.W - 1)) // how.W * how.W, (begin + classes) // how.W * how.W
    return Span(begin, lo, hi, begin + classes)


@triton.jit
def part_of(span, part, parts, tiles, how: tl.constexpr):
    """One of the parts of a span, so many tiles each. The first edge is the first one's, the last the last one's."""
    lo = span.lo + part * tiles * (how.T * how.W)
    hi = tl.minimum(lo + tiles * (how.T * how.W), span.hi)
    begin, end = lo, hi
    if how.PEELED:
        # The whole lines may end a tile before the last part begins: it has the last edge alone.
        begin = tl.where(part == 0, span.begin, tl.minimum(lo, hi))
        end = tl.where(part == parts - 1, span.end, hi)
    return Span(begin, lo, hi, end)


@triton.jit
def counting(span, program, COUNTING: tl.constexpr, how: tl.constexpr):
    """The span of a program's row if it counts, or without COUNTING if it does not: else nothing. Of several rows there
    is one that does.
    """
    hi, end = span.hi, span.end
    if how.R == 1:
        there = (tl.sum(program.counts.to(tl.int32), 0) != 0) == COUNTING
        hi, end = tl.where(there, hi, 0), tl.where(there, end, 0)
    return Span(span.begin, span.lo, hi, end)


@triton.jit
def class_step(array, how: tl.constexpr):
    """From a class to the next."""
    return array.of_class if how.X_SIDE else in_lines(array.of_class, how)


@triton.jit
def bound(classes, how: tl.constexpr):
    """The number of classes, or up to which place the whole lines lie."""
    if how.PEELED:
        return classes // how.W * how.W
    return in_lines(classes, how) if how.X_SIDE else classes


@triton.jit
def place_of(c, stride, SIDE_BY_SIDE: tl.constexpr):
    """Where classes are in their row; in 64 bits where they are apart."""
    return c if SIDE_BY_SIDE else c.to(tl.int64) * stride


@triton.jit
def places_from(start, span, how: tl.constexpr, KIND: tl.constexpr):
    """The places of a tile's numbers, see `Tile`, and which of them are in the span."""
    line = tl.arange(0, 2 * how.W if KIND == BESIDE else how.T)[:, None, None]
    if KIND >= EDGES:
        first = line < how.W
        place = tl.where(first, line, span.hi + (line - how.W))
        there = (place >= span.begin) & (place < tl.where(first, tl.minimum(span.lo, span.end), span.end))
    else:
        place = start + line * how.W + tl.arange(0, how.W)[None, :, None]
        there = place < bound(span.hi, how)
    return place, there


@triton.jit
def store(place, values, ok, MASKED: tl.constexpr):
    """Of results, which the caches need not keep."""
    if MASKED:
        tl.store(place, values, mask=ok, cache_modifier=".cs")
    else:
        tl.store(place, values, cache_modifier=".cs")


@triton.jit
def capped(x, cap, how: tl.constexpr):
    """In units of the softcap, if there is one."""
    z = x.to(how.A)
    return tanh(z, 1.0 / cap, x.dtype.primitive_bitwidth == 16) if how.CAPPED else z


@triton.jit
def load_logits(x, ok, cap, how: tl.constexpr, MASKED: tl.constexpr, POLICY: tl.constexpr):
    """The `capped` logits, -inf where there are none."""
    if MASKED and how.CAPPED:
        z = tl.where(ok, capped(tl.load(x, mask=ok, other=0.0, eviction_policy=POLICY), cap, how), -INFINITY)
    elif MASKED:
        z = tl.load(x, mask=ok, other=-INFINITY, eviction_policy=POLICY).to(how.A)
    else:
        z = capped(tl.load(x, eviction_policy=POLICY), cap, how)
    return z


@triton.jit
def target_weights(target, w, program, c, place, there, ok, terms, how: tl.constexpr, MASKED: tl.constexpr):
    """q of classes for rows that count 1, without the label's own part, in units of `Terms.unit`."""
    q = tl.full(ok.shape, 1.0, how.A)
    if how.WEIGHTED:
        q *= tl.load(w + c, mask=there, other=0.0).to(how.A) if MASKED else tl.load(w + c).to(how.A)
    if how.SOFT:
        place = at_classes(target, program, how)[None, None, :] + place_of(place, class_step(target, how), how.T_SIDE)
        t = tl.load(place, mask=ok, other=0.0).to(how.A) if MASKED else tl.load(place).to(how.A)
        q = target_weight(t, q, 1.0, terms.smoothing, terms.classes)
    elif not how.CAPPED:
        q = target_weight(0.0, q, 1.0, terms.smoothing, terms.classes)
    return tl.where(ok, q, 0.0) if MASKED else q


@triton.jit
def load_tile(x, target, w, program, start, span, terms, how: tl.constexpr, KIND: tl.constexpr, POLICY: tl.constexpr):
    """The `Tile` from the place `start` on; unless it is WHOLE without what is not in the span, or no row."""
    place, there = places_from(start, span, how, KIND)
    c, ok = place - begin_of(x, program, how), there & program.here[None, None, :]
    MASKED: tl.constexpr = KIND != WHOLE
    at = at_classes(x, program, how)[None, None, :] + place_of(place, class_step(x, how), how.X_SIDE)
    z = load_logits(at, ok, terms.cap, how, MASKED, POLICY)
    if how.MASS:
        q = target_weights(target, w, program, c, place, there, ok, terms, how, MASKED)
    else:
        q = tl.zeros(ok.shape, how.A)
    return Tile(c, place, ok, z, q)


@triton.jit
def at_label(values, of_label, tile, program):
    """`of_label` in the label's place."""
    return tl.where(tile.c == program.label[None, None, :], of_label, values)


class Tiles(NamedTuple):
    """Of a row the WHOLE tiles that are not the label's take their turns from `lo` to `plain`, the others from there to
    `hi`, see `tile_of`; `label` is the place where the label's begins. `edges`: how many tiles these are.
    """

    lo: Any
    plain: Any
    label: Any
    hi: Any
    edges: Any


@triton.jit
def label_of(array, program, how: tl.constexpr):
    """The places of labels, (R,)."""
    return program.label + begin_of(array, program, how)


@triton.jit
def tiles_of(span, label, how: tl.constexpr):
    """The `Tiles` of a span, with the place of a row's label as `label_of` has it; or with None, and then every tile
    begins where its turn comes. The whole ones lie around the label's, which comes after them, and then the last tile
    if it is not whole. So nothing is masked, and no label looked for, in any other. Of several rows every tile may have
    a label. Without labels EDGES always take a turn: to know whether there are some, a register more would be spilled.
    """
    BLOCK: tl.constexpr = how.T * how.W
    plain, first, edges = span.lo, span.lo, 1
    if label is not None:
        edges = tl.where((span.begin < span.lo) | (span.hi < span.end), 1, 0)
    if how.R == 1:
        whole = span.lo + tl.maximum(span.hi - span.lo, 0) // BLOCK * BLOCK
        plain, first = whole, whole
        if label is not None:
            own = tl.sum(label, 0) - span.lo
            first = tl.where((own >= 0) & (own < whole - span.lo), span.lo + own // BLOCK * BLOCK, whole)
            plain = tl.where(first < whole, whole - BLOCK, whole)
    return Tiles(span.lo, plain, first, span.hi, edges)


@triton.jit
def turns(tiles, KIND: tl.constexpr):
    """From where to where the turns of a kind of tiles are."""
    if KIND == EDGES:
        return 0, tiles.edges
    return (tiles.lo, tiles.plain) if KIND == WHOLE else (tiles.plain, tiles.hi)


@triton.jit
def tile_of(start, tiles, how: tl.constexpr, KIND: tl.constexpr):
    """Where the tile is whose turn comes at `start`, given `tiles_of`."""
    if KIND == WHOLE:
        return tl.where(start < tiles.label, start, start + how.T * how.W)
    return tl.where(start == tiles.plain, tiles.label, start) if KIND == LINES else start


@triton.jit
def own_of(x, w, program, shape, terms, how: tl.constexpr):
    """The label's logit, -inf where it is not among these classes, and its class weight."""
    label = program.label
    own, own_weight = tl.full(label.shape, -INFINITY, how.A), tl.full(label.shape, 1.0, how.A)
    if not how.SOFT:
        here = (label >= 0) & (label < shape.classes)
        place = at_rows(x, program) + place_of(label, x.of_class, how.X_SIDE)
        own = load_logits(place, here, terms.cap, how, True, "")
        if how.CAPPED:
            own *= terms.cap
        if how.WEIGHTED:
            own_weight = tl.load(w + label, mask=here, other=0.0).to(how.A)
    return own, own_weight


@triton.jit
def lowest(how: tl.constexpr):
    """Where the largest logit starts from, in the units of `Tile`: a finite number, so that no difference is one of
    infinite numbers.
    """
    return -1.0 if how.CAPPED else -1.7976931348623157e308 if how.A == tl.float64 else -3.4028234663852886e38


@triton.jit
def no_sums(how: tl.constexpr):
    """The sums of lines of no classes, (T, R). Their peaks are the largest logits so far, in the units of `Tile`. With
    a softcap dot is that with the logits themselves, and `own` is what is taken off in the exponent of 2.
    """
    T: tl.constexpr = how.T
    R: tl.constexpr = how.R
    nothing = tl.zeros((T, R), how.A)
    return Sums(nothing + lowest(how), nothing, nothing, nothing, nothing, nothing)


@triton.jit
def added(sums, tile, program, terms, how: tl.constexpr, KIND: tl.constexpr):
    """The sums of lines with those of a tile: every line has its own, so that no thread waits for another. A WHOLE tile
    has no label.
    """
    peak = tl.maximum(sums.peak, tl.max(tile.z, 1))
    of_others = at_label(tile.z, -INFINITY, tile, program) if KIND != WHOLE else tile.z
    others, base, mass, dot = sums.others, sums.own, sums.mass, sums.dot
    if how.CAPPED:  # no product can be infinite here: it takes one instruction with the sum
        a = tl.zeros_like(peak) + LOG2_E * terms.cap
        base = tl.fma(peak, a, tl.zeros_like(peak))  # rounded, which a product would not be once it is joined to a sum
        power = tl.fma(of_others, tl.zeros_like(of_others) + a[:, None, :], tl.zeros_like(of_others) - base[:, None, :])
        others = others * tl.exp2(sums.own - base) + tl.sum(tl.exp2(power), 1)
    else:
        others = others * exp(sums.peak - peak) + tl.sum(exp(of_others - peak[:, None, :]), 1)
    if how.MASS:
        z = tile.z
        if not how.CAPPED:
            z -= peak[:, None, :]
            dot += tl.where(mass == 0.0, 0.0, mass * (sums.peak - peak))
        part = tile.q * z
        if KIND != WHOLE or not how.CAPPED:  # where z may be -inf
            part = tl.where(tile.q == 0.0, 0.0, part)
        dot += tl.sum(part, 1)
        mass += tl.sum(tile.q, 1)
    return Sums(peak, others, base, sums.own_weight, mass, dot)


@triton.jit
def joined(sums, own, own_weight, terms, how: tl.constexpr):
    """The sums of rows, (R,), from those of their lines."""
    peak = tl.max(sums.peak, 0)
    others, mass, dot = sums.others, tl.sum(sums.mass, 0), sums.dot
    if how.CAPPED:
        base = tl.max(sums.own, 0)
        others = tl.sum(others * tl.exp2(sums.own - base[None, :]), 0)
        peak *= terms.cap
        others *= tl.exp2(-tl.fma(peak, tl.zeros_like(peak) + LOG2_E, -base))
        dot = tl.sum(dot, 0) * terms.cap - mass * peak
    else:
        others = tl.sum(others * exp(sums.peak - peak[None, :]), 0)
        dot = tl.sum(tl.where(sums.mass == 0.0, 0.0, dot + sums.mass * (sums.peak - peak[None, :])), 0)
        peak = tl.where((peak == lowest(how)) & (others == 0.0), 0.0, peak)
    return Sums(peak, others, own, own_weight, terms.unit * mass, terms.unit * dot)


@triton.jit
def exponentials(z, relative, terms, how: tl.constexpr):
    """Of a tile's logits, by the first two numbers of `relative_to`."""
    a = relative[0] * terms.cap if how.CAPPED else relative[0]
    nothing = tl.zeros(z.shape, z.dtype)
    return tl.exp2(tl.fma(z, nothing + a[None, None, :], nothing + relative[1][None, None, :]))


@triton.jit
def top_of(values, beside, how: tl.constexpr):
    """The largest value of a tile that is a row and, if it is PEELED, of the edges BESIDE it."""
    top = tl.max(tl.max(values, 1), 0)
    return tl.maximum(top, tl.max(tl.max(beside, 1), 0)) if how.PEELED else top


@triton.jit
def sum_of(values, beside, how: tl.constexpr):
    """As `top_of`, of their sum."""
    total = tl.sum(tl.sum(values, 1), 0)
    return total + tl.sum(tl.sum(beside, 1), 0) if how.PEELED else total


@triton.jit
def _part_of_dot(tile, peak):
    return tl.where(tile.q == 0.0, 0.0, tile.q * (tile.z - peak[None, None, :]))


@triton.jit
def sums_of_tile(tile, edges, program, own, own_weight, terms, how: tl.constexpr):
    """The sums of rows that are one tile and, if they are PEELED, the edges BESIDE it; the `exponentials` of both, and
    what to multiply these by.
    """
    peak = finite(top_of(tile.z, edges.z, how))
    unit = terms.cap if how.CAPPED else tl.full((), 1.0, how.A)
    relative = relative_to(peak * unit)
    e, of_edges = exponentials(tile.z, relative, terms, how), exponentials(edges.z, relative, terms, how)
    others = sum_of(at_label(e, 0.0, tile, program), at_label(of_edges, 0.0, edges, program), how)
    mass, dot = tl.zeros_like(peak), tl.zeros_like(peak)
    if how.MASS:
        mass = terms.unit * sum_of(tile.q, edges.q, how)
        dot = (terms.unit * unit) * sum_of(_part_of_dot(tile, peak), _part_of_dot(edges, peak), how)
    return Sums(peak * unit, relative[2] * others, own, own_weight, mass, dot), e, of_edges, relative[2]


@triton.jit
def without_ignored(sums, program):
    """Harmless sums in rows that do not count: nobody knows what their logits are."""
    counts = program.counts
    return Sums(
        tl.where(counts, sums.peak, 0.0),
        tl.where(counts, sums.others, 1.0),
        sums.own,
        sums.own_weight,
        tl.where(counts, sums.mass, 0.0),
        tl.where(counts, sums.dot, 0.0),
    )


@triton.jit
def masses_of(sums, keep, terms, how: tl.constexpr):
    """The label's own part of the mass of q, and the rest."""
    label_mass = tl.zeros_like(keep) if how.SOFT else label_weight(sums.own_weight, keep, terms.smoothing)
    return label_mass, keep * sums.mass


@triton.jit
def nll_of(own, own_exp, others):
    """The negative log-probability of labels; `own` is their logit less the peak, `own_exp` its exponential."""
    confident = others <= own_exp
    share = tl.where(confident, others, 0.0) / tl.where(confident, own_exp, 1.0)
    return tl.where(confident, log1p(share), tl.log(others + own_exp) - own)


@triton.jit
def losses_of(sums, keep, terms, how: tl.constexpr):
    """The losses of rows, in any number for those that do not count."""
    label_mass, mass = masses_of(sums, keep, terms, how)
    own = sums.own - sums.peak
    own_exp = exp(own)
    log_total = tl.log(sums.others + own_exp)
    nll = nll_of(own, own_exp, sums.others)
    nll = tl.where((label_mass == 0.0) & (nll == float("inf")), 0.0, nll)
    return row_loss(nll, label_mass, log_total, mass, keep * sums.dot, sums.peak + log_total, terms.z_loss)


class Slopes(NamedTuple):
    """What the gradients of rows are made of, 0 in rows that do not count: what q is multiplied by, the factor of
    exp(z - peak), the gradient at the label; and the cost of `_rules.target_grad`.
    """

    of_target: Any
    factor: Any
    of_label: Any
    cost: Any


@triton.jit
def slopes_of(sums, program, upstream, terms, how: tl.constexpr):
    keep, counts = program.keep, program.counts
    label_mass, mass = masses_of(sums, keep, terms, how)
    own_exp = exp(sums.own - sums.peak)
    total = sums.others + own_exp
    log_total = tl.log(total)
    lse = sums.peak + log_total
    slope = lse_slope(label_mass + mass, lse, terms.z_loss)
    rest = target_weight(0.0, sums.own_weight, keep, terms.smoothing, terms.classes)
    of_label = upstream * label_grad(own_exp / total, sums.others / total, label_mass, rest, slope)
    if how.CAPPED:
        of_label *= softcap_slope(sums.own / terms.cap, 1.0)
    return Slopes(
        tl.where(counts, upstream * keep, 0.0) * terms.unit,
        tl.where(counts, upstream * slope / total, 0.0),
        tl.where(counts, of_label, 0.0),
        log_total + terms.z_loss * lse * lse,
    )


@triton.jit
def gradient_of(tile, e, slopes, program, how: tl.constexpr, KIND: tl.constexpr):
    """The gradient of a tile's logits, e their exponentials. A WHOLE tile has no label."""
    g = class_grad(e, slopes.of_target[None, None, :] * tile.q, slopes.factor[None, None, :])
    if how.CAPPED:
        g *= softcap_slope(tile.z, 1.0)
    return at_label(g, slopes.of_label[None, None, :], tile, program) if KIND != WHOLE else g


@triton.jit
def by_exponentials(slopes, by):
    """For exponentials that have to be multiplied by a number."""
    return Slopes(slopes.of_target, slopes.factor * by, slopes.of_label, slopes.cost)
