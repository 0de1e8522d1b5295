"""The plain operations on any array library that follows the array API standard."""

import array_api_strict
import numpy as np
import pytest
from harness import expected
from test_contract import OPTION_SHAPES, OPTIONS, class_axis, log_probabilities, make

from crossent._options import loss_options
from crossent.frontends.torch import namespace
from crossent.kernels import plain

LIBRARIES = {"torch": namespace, "numpy": np, "strict": array_api_strict}


def same(array):
    return array


def rows_of(shape, dim, xp, **made):
    """Logits, target, class weights and what each row counts, as arrays of the library; and the keywords."""
    logits, target, keywords = make(shape, dim, **made)
    if logits.ndim == 1:  # plain operations take at least one axis of rows
        logits, target, dim = logits[None], target[None], 1
        keywords = {key: value[None] if key == "sample_weight" else value for key, value in keywords.items()}
    samples = keywords.get("sample_weight")
    keep = np.ones(target.shape if target.ndim < logits.ndim else np.delete(logits.shape, class_axis(logits, dim)))
    keep = keep if samples is None else keep * samples
    if target.ndim < logits.ndim:
        keep = np.where(target == keywords.get("ignore_index", -100), 0.0, keep)
    weight = keywords.get("weight")
    arrays = [logits, target, None if weight is None else weight.astype(np.float64), keep]
    return arrays, [None if array is None else xp.asarray(array) for array in arrays], keywords


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("shape", "dim"), OPTION_SHAPES)
def test_losses(library, options, shape, dim):
    xp, made = LIBRARIES[library], OPTIONS[options] | {"reduction": "none"}
    made.pop("denominator", None)
    (logits, target, *_), (x, t, w, keep), keywords = rows_of(shape, dim, xp, **made)
    axis, soft = class_axis(logits, dim), target.ndim == logits.ndim
    names = ("reduction", "ignore_index", "label_smoothing", "softcap", "z_loss")
    found = loss_options(**{name: keywords[name] for name in names if name in keywords})
    losses = plain.row_losses(xp, x, t, soft, w, keep, found, axis, same)
    exact = expected("cross_entropy", logits, target, upstream=np.ones(keep.shape), **keywords)[0]
    np.testing.assert_allclose(np.asarray(losses), exact, rtol=1e-12, atol=1e-13)
    if soft or options not in ("mean", "ignored", "class weights", "both weights"):
        return
    log_probs = log_probabilities(logits, axis)
    picked = plain.picked_losses(xp, xp.asarray(log_probs), t, w, keep, axis)
    np.testing.assert_allclose(np.asarray(picked), exact, rtol=1e-12, atol=1e-13)
    counted = np.asarray(plain.row_weights(xp, t, soft, w, keep))
    of_label = np.ones(target.shape) if w is None else keywords["weight"][np.where(np.asarray(keep) != 0, target, 0)]
    np.testing.assert_array_equal(counted, of_label * np.asarray(keep))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("shape", "dim"), OPTION_SHAPES)
def test_softmax(library, shape, dim):
    xp, logits = LIBRARIES[library], make(shape, dim)[0]
    axis, upstream = class_axis(logits, dim), np.random.default_rng(1).normal(size=shape)
    exact, gradient = expected("log_softmax", logits, axis, upstream)
    out = plain.log_softmax(xp, xp.asarray(logits), axis, same)
    np.testing.assert_allclose(np.asarray(out), exact, rtol=1e-13, atol=1e-14)
    dx = plain.log_softmax_grad(xp, out, xp.asarray(upstream), axis)
    np.testing.assert_allclose(np.asarray(dx), gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("shape", "dim"), OPTION_SHAPES)
def test_statistics(library, shape, dim):
    xp = LIBRARIES[library]
    (logits, target, _, keep), (x, t, _, kept), keywords = rows_of(shape, dim, xp, ignored=True)
    axis = class_axis(logits, dim)
    z, label = np.moveaxis(logits, axis, -1), np.where(keep != 0, target, 0)[..., None]
    lse = np.log(np.sum(np.exp(z), -1))
    p, own = np.exp(z - lse[..., None]), np.take_along_axis(z, label, -1)
    rank = np.sum((z > own) | ((z == own) & (np.arange(z.shape[-1]) < label)), -1)
    one = np.zeros(z.shape)
    np.put_along_axis(one, label, 1.0, -1)
    logprob, entropy, brier = own[..., 0] - lse, -np.sum(p * np.log(p), -1), np.sum((p - one) ** 2, -1)
    options = loss_options(reduction="none", ignore_index=keywords["ignore_index"])
    found = plain.token_stats(xp, x, t, kept, options, axis, same)
    for got, exact, ignored in zip(found, (logprob, lse, entropy, rank), (0, 0, 0, -1), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.where(keep != 0, exact, ignored), rtol=1e-12, atol=1e-13)
    found = plain.prediction_stats(xp, x, t, kept, axis)
    wanted = (logprob, rank, z.argmax(-1), p.max(-1), brier)
    for got, exact, ignored in zip(found, wanted, (0, -1, -1, 0, 0), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.where(keep != 0, exact, ignored), rtol=1e-12, atol=1e-13)
