"""The fast path of a training step: the numbers of the plain loss, from the active latents alone.

A step of a sparse coder needs one dense product, x @ W_enc. Everything after it touches only the few latents that are
active in each row, kept here as (row, latent) pairs and never as a dense (B, S) array.

    select.py  which pairs are active: exact, with a dense fallback
    pairs.py   the sums over pairs, with gradients written by hand
    terms.py   the terms of the loss from the pairs
    nested.py  the nested ranks of MSAE, where a quarter of the latents is active

The readable definition is SparseCoder's plain loss; `coder.fast = "off"` always takes it.
"""
