"""The fast path of a training step: the numbers of the plain loss, from the active latents alone.

A step of a sparse coder needs one dense product, x @ W_enc. Everything after it touches only the few latents that are
active in each row, kept here as (row, latent) pairs and never as a dense (B, S) array.

    select.py  which pairs are active: exact, with a dense fallback
    pairs.py   the sums over pairs, with gradients written by hand
    terms.py   the terms of the loss from the pairs
    nested.py  the nested ranks of MSAE, where a quarter of the latents is active
    triton_kernels.py the selection and the sums on a GPU, by Triton
    numba_kernels.py  the same of large batches on a CPU, by numba, which is optional

On a GPU the same steps are taken without asking it for a number: shapes follow from the settings, so the coders that keep k of
each row or k * B of a batch take this path (with one decoder), all others the plain one. The selection is exact for the
pre-activations as their product gives them, in float32, tf32 or bf16; sums over pairs are float32, or where products are
quicker (pairs.dense_pays) rounded as that product is.

The readable definition is SparseCoder's plain loss; `coder.fast = "off"` always takes it.
"""
