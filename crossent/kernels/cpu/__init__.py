"""Kernels for a CPU, and the way that they are called for arrays which are there as a whole.

An array is an address (0 for an array that is not there), a storage type ("float16", "bfloat16", "float32" or
"float64") and strides in elements. Everything that stays the same from call to call is in a plan, which is made once
for each layout, storage type and set of options:

    plan = LossPlan(layout, storage, soft, target_strides, options, picks)
    plan.forward((x, target, 0, *weights, loss, stats), threads, owners) -> (sum of losses, sum of weights)
    plan.backward((x, target, dx, *weights, 0, stats, dloss, scale, with_loss, dtarget), threads, owners)
        -> the same sums, if `with_loss` asks for them
    plan.at_once(...)
        # loss and gradient in one call: the arguments of backward, without stats. `plan.unit` is a scale that suits
        # this call. Both are None where two calls are better
    plan.quick_forward((x, target, 0), threads, owners), plan.quick_backward((x, target, dx), threads, owners)
        # the same two calls for labels without weights: `plan.unit` is the scale, and `with_loss` is on. None where
        # the plan has no such calls

    plan = staged_plan(layout, storage, soft, target_strides, options, first_class, all_classes)
    plan.sums(...), plan.losses(...), plan.gradients(...)
        # the two stages of a loss, for rows whose classes lie side by side: the arguments of forward, forward and
        # backward, with an array of `plan.SUMS` by rows as `stats`

    plan = SoftmaxPlan(layout, storage, log)
    plan.forward((x, out), threads, owners)
    plan.backward((out, dx, dout, *dout_strides), threads, owners)  # of a plan for the layout of out

    plan = token_plan(layout, storage, target_strides, options)       # for rows whose classes lie side by side
    plan.forward((x, target, logprob, lse, entropy, rank), threads, owners)
    plan.backward((x, target, logprob, lse, entropy, rank, dlogprob, dlse, dentropy, dx), threads, owners)
        # a label that is not among the classes has no entry in its row of dx
    plan.label_logits((x, target, own, 0), threads, owners)
    plan.sums((x, target, own, stats), threads, owners)
        # of one shard of the classes, for rows that all count. A label is its number among these classes, -1 if it
        # comes before them, and their count if it comes after them. `label_logits` writes to `own` the logit of each
        # label that is among these classes. `sums` reads from `own` the labels' logits among all classes, and writes
        # an array of `plan.SUMS` by rows

    plan = score_plan(layout, storage, target_strides, ignore_index)  # for rows whose classes lie side by side
    plan.forward((x, target, logprob, rank, prediction, confidence, brier), threads, owners)

    product(storage, rounded, along, row_strides, rows, columns, depth, threads)(
        (a, b, c, adds, b_rows, c_rows), threads, owners
    )
        # c = a @ b, or c += a @ b if `adds`. `along` says for a and for b whether the summed axis runs along its rows
        # in memory or across them. Only b may be stored in 16 bits. If only some rows of b or c take part, b_rows or
        # c_rows is the address of their numbers, else 0; b_rows is for sums across the rows of b only. Storage
        # "bfloat16 pairs", which not every processor has, is for a and b that are both stored in 16 bits. c then is
        # too if `rounded`, and is not added to. b_rows is 0 then, and where a sum runs along rows these hold whole
        # pairs, or, for a, a 0 follows each row

    rounding(rows, columns, row_stride)((x,), threads, owners)
        # rounds float32 numbers to bfloat16 in place and writes a 0 after each row

    sums(classes, storage, threads)((x, row_stride, rows, squares, by_row), threads, owners)
        # adds to `squares` each column's sum of squares; by_row gets each row's sum over every BLOCK_OF_SUMS columns

    combinations(classes, storage, threads)(
        (x, row_stride, rows, factors, factors_row, count, combined, combined_row), threads, owners
    )   # combined = factors @ x for `count` rows of factors. The rows of factors and of combined have room for a
        # multiple of ROOM_OF_COMBINATIONS numbers

`x` are the logits and `target` int64 labels, or probabilities stored like the logits. `weights` are three: the sum of
the class weights, the address of the class weights, and that of the sample weights, one for each row; both are stored
in the type of the arithmetic. `picks` says that the logits are log-probabilities, of which each row needs one; dx must
then hold zeros. `stats` has room for `plan.stats` numbers per row. `dx` is the logits, or a new array; new arrays, as
`dtarget`, have the layout's new strides. `threads` is a function that gives the number of threads; it is called only
where there is work for several. `owners` are the objects that own all this memory. A label outside the classes raises
`BadLabel` with the number of its row, before anything is read or written there.
"""
