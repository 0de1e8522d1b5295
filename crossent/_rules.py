"""What a row's loss means. Arithmetic only, on numbers, vectors and arrays alike; no rule calls a rule.

For one row with logits z (after a softcap), target weights q, lse = log sum_c exp(z_c) and p_c = exp(z_c - lse):

    q_c  = keep * w_c * ((1 - smoothing) * t_c + smoothing / n_classes)
    loss = sum_c q_c * (lse - z_c + z_loss * lse**2)
    d loss / d z_c = (sum_c q_c) * (1 + 2 * z_loss * lse) * p_c - q_c

`keep` is the row's sample weight, 0 where the row is ignored. Class weights, like sample weights, say how much a row
counts, in the z term as everywhere else. So if all of them are multiplied by a number, the balance between the terms
does not change: each row's loss is multiplied by it, and the mean stays the same. Dividing the z term by the number of
rows in the mean would keep a balance as well. But then there would be two divisors, and one `denominator` for several
steps or processes would not do.

For a label y the loss is split in two: the label's own part, `label_mass * nll` with nll = lse - z_y, and the rest that
smoothing spreads over the classes. nll and the gradient at y are then made from the other classes alone, and keep their
digits when the row is confident. The rest is relative to any number `peak` near the largest logit:
log_total = lse - peak, rest_dot = sum_c q_c * (z_c - peak).
"""


def target_weight(t, w, keep, smoothing, n_classes):
    """q_c of a class with target probability t and class weight w."""
    return keep * w * ((1.0 - smoothing) * t + smoothing / n_classes)


def label_weight(w, keep, smoothing):
    """The label's own part of its q, without what smoothing gives every class."""
    return keep * w * (1.0 - smoothing)


def row_loss(nll, label_mass, log_total, rest_mass, rest_dot, lse, z_loss):
    return label_mass * nll + rest_mass * log_total - rest_dot + (label_mass + rest_mass) * z_loss * lse * lse


def lse_slope(mass, lse, z_loss):
    """d loss / d lse; `mass` is the sum of all target weights."""
    return mass + 2.0 * mass * z_loss * lse


def class_grad(p, q, slope):
    return slope * p - q


def label_grad(p, others, label_mass, rest, slope):
    """d loss / d z at the label: others = 1 - p, from the other classes; rest = what smoothing gives the label."""
    return (slope - label_mass) * p - label_mass * others - rest


def target_grad(cost, z, w, keep, smoothing):
    """d loss / d t_c of a soft target, z relative to the peak, cost = log_total + z_loss * lse**2."""
    return keep * w * (1.0 - smoothing) * (cost - z)


def softcap_slope(z, cap):
    """dz / dx of z = cap * tanh(x / cap)."""
    return 1.0 - (z / cap) * (z / cap)


def entropy_of(log_total, dot, total):
    """The entropy of a row: total is the sum of the exponentials e, dot that of e * log e, relative to the peak."""
    return log_total - dot / total


def token_grad(p, log_p, entropy, dlogprob, dlse, dentropy):
    """d / d z_c of the label's log-probability, of lse and of the entropy, without the label's own share dlogprob."""
    return p * (dlse - dlogprob - dentropy * (log_p + entropy))


def brier(others, squares, total):
    """sum_c (p_c - t_c)**2 for a label: others and squares are sums over the other classes' exponentials."""
    return (others * others + squares) / (total * total)
