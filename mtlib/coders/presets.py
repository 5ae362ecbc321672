"""The published methods, and ours, as plain settings: a dict of facts, scaled to any size by `coder_settings`.

Sizes are the published ones. Asked for another number of latents, levels and the k inside them follow in proportion, and
so do the k of Matryoshka Transcoders' baselines; all other k stay as published until they are an eighth of the latents.

`as_published` holds what the authors' code does and is a mistake (the default is the sound way), or is done for once.
"""

from __future__ import annotations

from collections.abc import Sequence

SPARSE = 8  # latents for each one that a row keeps, at least

_MT_LEVELS = (128, 256, 512, 1024, 2048)
_MT_WEIGHTS = (0.1, 0.15, 0.2, 0.25, 0.3)
_MT = dict(n_latents=2048, activation="jumprelu_fixed", penalty="l1_mean", penalty_weight=0.01)
_MT_NESTED = _MT | dict(
    selection="block_topk", levels=_MT_LEVELS, ks=(16, 32, 64, 128, 256), level_weights=_MT_WEIGHTS, decoder="own"
)
_MT_FLAT = _MT | dict(selection="topk", ks=(256,))
_MT_TRAIN = dict(lr=1e-4, weight_decay=1e-5, schedule="cosine", final_lr=0.01, grad_clip=1.0, batch=32, epochs=100)

_MT_AS_PUBLISHED = dict(schedule_by="epoch", decay_start=0.05, drop_last=False)  # the full rate for 5 of 100 epochs

# CLIP ViT-L/14 (768), expansion 8; the bias that the decoder adds is subtracted from the input. Two generations were published:
# nmse with k to all latents (here: it is what the paper describes), and error = mse with ks = 64, 128, 256 (the later advice).
_MSAE = dict(n_latents=6144, centre="mean", scale="rms", error="nmse", pre_bias="decoder", init_norm=0.1)
_MSAE |= dict(unit_norm_decoder=True, unit_norm_rescales=True, project_gradient=True)
_MSAE_KS = (64, 128, 256, 512, 1024, 2048, 4096, 6144)
_MSAE_NESTED = _MSAE | dict(selection="nested_topk", ks=_MSAE_KS, decoder="shared")
_MSAE_TRAIN = dict(eps=6.25e-10, batch=4096, epochs=30, schedule="linear", decay_start=0.8, grad_clip=1.0)
_MSAE_TRAIN |= dict(schedule_by="epoch", drop_last=False)
_MSAE_AS_PUBLISHED = dict(unit_norm_when="before")  # gradients then belong to the weights before they were scaled

# rows of norm 1; dead after ten million rows, in whole batches of 2,048
_MONO = dict(n_latents=8192, unit_rows=True, unit_norm_decoder=True, unit_norm_when="before", dead_after=4882 * 2048)
_MONO_OTHER = _MONO | dict(init_norm=0.0, project_gradient=True, mono_rows="own")
_MONO_TRAIN = dict(lr=1e-4, eps=6.25e-10, batch=2048, epochs=50)
_MONO_OTHER_TRAIN = _MONO_TRAIN | dict(grad_clip=1.0, clip_when="first")

PRESETS: dict[str, dict[str, dict]] = {
    # Matryoshka Transcoders, arXiv 2511.10094
    "matryoshka_transcoder": {
        "coder": _MT_NESTED | dict(target="y"),
        "train": _MT_TRAIN,
        "as_published": _MT_AS_PUBLISHED,
    },
    "transcoder": {
        "coder": _MT_FLAT | dict(target="y"),
        "train": _MT_TRAIN,
        "as_published": _MT_AS_PUBLISHED,
        "k_in_proportion": True,
    },
    "sae": {"coder": _MT_FLAT, "train": _MT_TRAIN, "as_published": _MT_AS_PUBLISHED, "k_in_proportion": True},
    "matryoshka_sae": {"coder": _MT_NESTED, "train": _MT_TRAIN, "as_published": _MT_AS_PUBLISHED},
    # ours: the published Matryoshka transcoder, of what near images of one label share
    "neighbour_transcoder": {
        "coder": _MT_NESTED | dict(target="y"),
        "train": _MT_TRAIN | dict(target_neighbours=100),
    },
    # ours, before: one nested decoder, frozen threshold, revival of dead latents, MonoLoss, L0 set by the user
    "matryoshka_transcoder_shared": {
        "coder": dict(
            n_latents=2048,
            target="y",
            selection="batch_topk",
            levels=_MT_LEVELS,
            ks=(32,),
            level_weights=_MT_WEIGHTS,
            decoder="shared",
            unit_norm_decoder=True,
            centre="mean",
            scale="rms",
            target_centre="mean",
            target_scale="rms",
            aux_weight=1 / 32,
            mono_weight=0.1,
        ),
        "train": dict(lr=1e-3, schedule="cosine", final_lr=0.01, warmup=0.05, grad_clip=1.0, batch=256, epochs=50),
    },
    # MSAE, arXiv 2502.20578
    "relu": {
        "coder": _MSAE | dict(selection="none", penalty="l1_relative", penalty_weight=0.003),
        "train": _MSAE_TRAIN | dict(lr=5e-5),
        "as_published": _MSAE_AS_PUBLISHED,
    },
    "topk": {"coder": _MSAE | dict(ks=(64,)), "train": _MSAE_TRAIN | dict(lr=5e-4), "as_published": _MSAE_AS_PUBLISHED},
    "batch_topk": {
        "coder": _MSAE | dict(selection="batch_topk", ks=(32,)),
        "train": _MSAE_TRAIN | dict(lr=5e-4),
        "as_published": _MSAE_AS_PUBLISHED,
    },
    "msae_uw": {
        "coder": _MSAE_NESTED,
        "train": _MSAE_TRAIN | dict(lr=1e-4),
        "as_published": _MSAE_AS_PUBLISHED,
    },
    "msae_rw": {  # more weight on small k
        "coder": _MSAE_NESTED | dict(level_weights="reversed"),
        "train": _MSAE_TRAIN | dict(lr=1e-4),
        "as_published": _MSAE_AS_PUBLISHED,
    },
    # MonoLoss, arXiv 2602.12403 (coefficients for CLIP features of ImageNet)
    "monoloss_topk": {
        "coder": _MONO
        | dict(ks=(64,), scale="rows", tied=True, pre_bias="decoder", error="nmse", mono_weight=0.09)
        | dict(aux_weight=1 / 32, aux_k=64, aux_error="nmse"),
        "train": _MONO_TRAIN | dict(revive_every=10_000),
        "as_published": dict(aux_biased=True),
    },
    "monoloss_batch_topk": {
        "coder": _MONO_OTHER
        | dict(selection="batch_topk", ks=(64,), encoder_bias=False, pre_bias="decoder", mono_weight=3e-4)
        | dict(aux_weight=1 / 32, aux_k=512, aux_error="mse"),
        "train": _MONO_OTHER_TRAIN,
        "as_published": dict(inference="batch"),
    },
    "monoloss_relu": {
        "coder": _MONO_OTHER
        | dict(selection="none", pre_bias="decoder", penalty="l1_sum", penalty_weight=1e-4, mono_weight=1e-4),
        "train": _MONO_OTHER_TRAIN,
    },
    "monoloss_jumprelu": {
        "coder": _MONO_OTHER
        | dict(selection="none", activation="jumprelu", relu_first=True, bandwidth=1e-3, scale="rows")  # --normalize
        | dict(penalty="l0_rectangle", penalty_weight=1e-3, mono_weight=5e-4),
        "train": _MONO_OTHER_TRAIN,
        "as_published": dict(theta_init=1.0, theta_log=True, theta_lr=1.0, penalty="l0_rectangle_after"),
    },
    # SAE for CLIP layers: residual stream of ViT-B-32, width 768, expansion 64
    "sae_for_clip": {
        "coder": dict(n_latents=49152, ks=(500,), unit_norm_decoder=True, decoder_bias=False),
        "train": dict(lr=2e-4, batch=64, epochs=15, val_every=0, drop_last=False),
        "as_published": dict(frozen_decoder=True, init="independent"),  # its optimiser was not given the decoder
    },
    # AlexNet-Transformer: residual stream after block 6
    "alexnet": {
        "coder": dict(
            n_latents=2048,
            activation="jumprelu",
            selection="none",
            penalty="l0_sigmoid",
            penalty_weight=1e-3,
            theta_init=1e-3,
            bandwidth=1e-3,
            unit_norm_decoder=True,
        ),
        "train": dict(lr=1e-4, batch=128, batch_images=True, drop_last=False, epochs=10, weight_decay=0.01),
        "as_published": dict(unit_norm_along="columns", theta_lr=1.0, theta_decay=True),
    },
}


def scaled(sizes: Sequence[int], ratio: float) -> tuple[int, ...]:
    """Sizes times `ratio`, rounded, at least 1, still growing where they grew."""
    out: list[int] = []
    for i, size in enumerate(sizes):
        new = max(1, round(size * ratio))
        out.append(max(new, out[-1] + 1) if out and size > sizes[i - 1] else new)
    return tuple(out)


def doubled(k: int, n_latents: int) -> tuple[int, ...]:
    """k, 2k, 4k ... and all latents (MSAE)."""
    ks = [k]
    while ks[-1] < n_latents:
        ks.append(min(2 * ks[-1], n_latents))
    return tuple(ks)


def nested_ks(ks: Sequence[int], largest: int, n_latents: int) -> tuple[int, ...]:
    """Nested k in proportion, ending in `largest` or all latents; those that fall together become one."""
    last = min(largest, n_latents)
    return tuple(sorted({k for k in scaled(ks, largest / ks[-1])[:-1] if k < last} | {last}))


def shared_out(total: int, shares: Sequence[float], widths: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers, 1 .. width each, that sum to `total`, as near to the proportions of `shares` as that allows.

    What is over a width goes to the last ones that have room, as far as there is any.

    Raises: ValueError if total is smaller than the number of shares.
    """
    n = len(shares)
    if total < n:
        raise ValueError(f"l0 = {total} cannot be shared out over {n} blocks; it must be at least {n}")
    exact = [(total - n) * share / sum(shares) for share in shares]  # beyond the one that each gets
    out = [1 + int(e) for e in exact]
    by_remainder = sorted(range(n), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: total - sum(out)]:
        out[i] += 1
    out = [min(k, width) for k, width in zip(out, widths, strict=True)]
    for i in reversed(range(n)):
        out[i] += min(total - sum(out), widths[i] - out[i])
    return tuple(out)


def coder_settings(name: str, k: int | None = None, **overrides) -> dict:
    """Settings of a preset at another size, without d_in and d_out.

    Args: name: a key of PRESETS; k: one number for `ks`; overrides: any field of SparseCoderConfig.
    Returns: keyword arguments of SparseCoderConfig.
    Raises: ValueError for an unknown preset, naming those that exist.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    base = PRESETS[name]["coder"]
    given = overrides | ({} if k is None else {"ks": (k,)})
    settings = base | given
    S, nested = settings["n_latents"], settings.get("selection") == "nested_topk"
    ratio = S / base["n_latents"]
    if ratio != 1 and "levels" in base and "levels" not in given:
        settings["levels"] = scaled(base["levels"], ratio)[:-1] + (S,)
    if ratio != 1 and "ks" in base and "ks" not in given:
        if "levels" in base or PRESETS[name].get("k_in_proportion"):
            settings["ks"] = scaled(base["ks"], ratio)
        else:
            k = min(base["ks"][0], max(1, S // SPARSE))
            settings["ks"] = doubled(k, S) if nested else (k,)
    if settings.get("level_weights") == "reversed":
        if not nested:
            raise ValueError(f"level_weights = 'reversed' is for nested levels of k; the preset {name} has none")
        n = len(settings["ks"])
        settings["level_weights"] = tuple(2 * (n - i) / (n * (n + 1)) for i in range(n))
    return settings
