"""The kernels: rows in, numbers out.

Below this line there is no reduction, no class axis, no validation and no framework. Arrays are addresses (0 for what
is not there), with a storage type of "float16", "bfloat16", "float32" or "float64" and strides in elements. What does
not change between calls is a plan, made once for each layout, storage type and set of options:

    plan = loss_plan(layout, storage, soft, target_strides, options, picks)
    plan.forward((x, target, 0, *weights, loss, stats), threads, owners) -> (sum of losses, sum of weights)
    plan.backward((x, target, dx, *weights, 0, stats, dloss, scale, with_loss, dtarget), threads, owners)
        -> the same sums, if `with_loss` asks for them
    plan.at_once(...)
        # as backward, without stats, for loss and gradient together. It and `plan.unit`, a scale that suits, are None
        # where two calls are better
    plan.quick_forward((x, target, 0), threads, owners), plan.quick_backward((x, target, dx), threads, owners)
        # the same with nothing else given, where they are not None: `plan.unit` is the scale, and `with_loss` is on

    plan = softmax_plan(layout, storage, log)
    plan.forward((x, out), threads, owners)
    plan.backward((out, dx, dout, *dout_strides), threads, owners)  # of a plan for the layout of out

    plan = token_plan(layout, storage, target_strides, options)       # for rows along their classes
    plan.forward((x, target, logprob, lse, entropy, rank), threads, owners)
    plan.backward((x, target, logprob, lse, entropy, rank, dlogprob, dlse, dentropy, dx), threads, owners)

    plan = score_plan(layout, storage, target_strides, ignore_index)  # for rows along their classes
    plan.forward((x, target, logprob, rank, prediction, confidence, brier), threads, owners)

    product(storage, rounded, along, row_strides, rows, columns, depth, threads)(
        (a, b, c, adds, b_rows, c_rows), threads, owners
    )
        # a @ b, written to c or added. `along` says for a and for b whether the sums run along its rows in memory or
        # across them. Only b may be stored in 16 bits. b_rows and c_rows are the numbers of some rows, 0 for all, of b
        # only where the sums run across them. With storage "bfloat16 pairs", where the processor has such, a and b are
        # both stored in 16 bits, and if `rounded` so is c, to which nothing is added then; b_rows is 0, and rows along
        # which sums run consist of whole pairs, or those of a have a 0 behind them

    rounding(rows, columns, row_stride)((x,), threads, owners)
        # float32 numbers to bfloat16, where they are, with a 0 behind each row

    sums(classes, storage, threads)((x, row_stride, rows, squares, by_row), threads, owners)
        # of squares in each column, added; by_row gets what each row has in each BLOCK_OF_SUMS columns

    combinations(classes, storage, threads)(
        (x, row_stride, rows, factors, factors_row, count, combined, combined_row), threads, owners
    )   # factors @ x for `count` rows of factors; these and combined's have room for multiples of ROOM_OF_COMBINATIONS

`x` are the logits and `target` int64 labels, or probabilities stored like the logits. `weights` are the sum of the
class weights, and the addresses of class weights and sample weights, one for each row, in the type of the arithmetic.
`picks` says that the logits are log-probabilities, of which each row needs one; dx then holds zeros. `stats` has room
for `plan.stats` numbers a row. `dx` is the logits, or new like `dtarget`, with the layout's new strides. `threads` is a
function, asked only where there is work for several, and `owners` are the objects that own all this memory. A label
outside the classes raises `BadLabel` with the number of its row, before anything is read or written there.
"""


class BadLabel(Exception):
    """A row's label is neither a class nor ignored."""

    def __init__(self, row):
        super().__init__(row)
        self.row = row
