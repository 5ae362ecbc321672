"""Checkpoints in the layouts of the five systems and of two libraries: every field, of the type that the authors' own saving gives it.

Each function writes one file and returns its path with the formula of the coder in it: x (N, D) -> codes (N, S) and the
reconstruction (N, O), in float64, written down from the publications without a line of mtlib.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file


class Written(NamedTuple):
    path: Path
    formula: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def draws(seed: int) -> Callable[..., torch.Tensor]:
    """A function: shape -> float32 tensor of normal numbers with standard deviation 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, scale=0.5: scale * torch.randn(*shape, generator=generator)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def largest(z: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, the others 0."""
    out = np.zeros_like(z)
    kept = np.argsort(-z, axis=1, kind="stable")[:, :k]
    np.put_along_axis(out, kept, np.take_along_axis(z, kept, 1), 1)
    return out


def largest_of_all(z: np.ndarray, k: int) -> np.ndarray:
    """The k per row largest of the whole batch, the others 0."""
    return largest(z.reshape(1, -1), k * len(z)).reshape(z.shape)


def standardised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows by themselves; their means and standard deviations (n - 1)."""
    mean, spread = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    return (x - mean) / (spread + 1e-5), mean, spread


def optimiser(*parameters: torch.Tensor) -> dict:
    """The state of Adam after one step of these."""
    adam = torch.optim.Adam([torch.nn.Parameter(p.clone()) for p in parameters], lr=1e-4)
    for p in adam.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    adam.step()
    return adam.state_dict()


def msae(
    folder: Path,
    D: int,
    S: int,
    activation: str = "TopKReLU_4",
    *,
    tied=False,
    cap=0.0,
    norm=np.float64,
    seed=0,
    **more,
) -> Written:
    """MSAE. activation: as in the file's name, e.g. ReLU_003, BatchTopKReLU_4, TopKReLU_4_RW. norm: type of target_norm."""
    t = draws(seed)
    state = OrderedDict(pre_bias=t(D), encoder=t(D, S), latent_bias=t(S, scale=0.1))
    state |= {} if tied else {"decoder": t(S, D)}
    state["latents_activation_frequency"] = torch.zeros(S, dtype=torch.int64)
    mean, factor, name = t(D), 1.7, f"{S}_{D}_{activation}_{tied}_False_{cap}_cc3m_ViT-L~14_train_image_2905936_{D}.pth"
    saved = {"model": state, "mean_center": mean, "scaling_factor": factor, "target_norm": norm(np.sqrt(D))}
    torch.save(saved | more, folder / name)

    def formula(x):
        a = ((x - array(mean)) * factor - array(state["pre_bias"])) @ array(state["encoder"])
        z = np.maximum(a + array(state["latent_bias"]), 0)
        kind, *rest = activation.split("_")
        if kind == "TopKReLU" and len(rest) == 1:
            z = largest(z, int(rest[0]))
        elif kind == "BatchTopKReLU":
            z = largest_of_all(z, int(rest[0]))
        z = cap * np.tanh(z / cap) if cap else z
        decoder = array(state["encoder"]).T if tied else array(state["decoder"])
        return z, (z @ decoder + array(state["pre_bias"])) / factor + array(mean)

    return Written(folder / name, formula)


MONOLOSS_CONFIG = dict(
    train_path="features/imagenet/train/clip_image_features_CLIP-ViT-L-14-DataComp.lmdb", val_path=None
)
MONOLOSS_CONFIG |= dict(test_path=None, exp_name="default", normalize=False, batch_size=2048, num_epochs=50, lr=1e-4)
MONOLOSS_CONFIG |= dict(eps=6.25e-10, auxk_coef=1 / 32, auxk_k=None, mono_coef=0.0, mono_period=1, wandb_project=None)
MONOLOSS_CONFIG |= dict(
    dead_steps_threshold=10_000_000, wandb_name=None, wandb_group=None, device="cuda", num_workers=4
)
MONOLOSS_CONFIG |= dict(seed=42, output_dir="./checkpoints/default")


def monoloss(folder: Path, D: int, S: int, kind: str = "topk", *, k=4, normalize=False, seed=0, config=None) -> Written:
    """MonoLoss. kind: topk, batch_topk, vanilla, jumprelu. config: None for theirs, else what stands in its place."""
    t, path = draws(seed), folder / "autoencoder_final.pt"
    said = MONOLOSS_CONFIG | dict(n_latents=S, d_model=D, topk_k=k, normalize=normalize)
    if kind == "topk":
        said |= dict(activation="topk", tied_weights=True, dead_check_interval=1000)
        encoder, inner = t(S, D), OrderedDict(k=k, postact_fn="ReLU")
        state = OrderedDict(pre_bias=t(D, scale=0.1), latent_bias=t(S, scale=0.1))
        state |= {"stats_last_nonzero": torch.ones(S, dtype=torch.int64), "latents_activation_frequency": torch.ones(S)}
        state |= {"latents_mean_square": torch.zeros(S), "encoder.weight": encoder, "activation.k": k}
        state |= {"activation.postact_fn": "ReLU", "decoder.linear.weight": encoder, "activation": "TopK"}
        state |= {"activation_state_dict": inner}
        trained = (state["pre_bias"], state["latent_bias"], encoder)
    else:
        said |= dict(model_type=kind, max_grad_norm=1.0, l1_coef=1e-4, bandwidth=1e-3)
        state = OrderedDict(b_dec=t(D, scale=0.1), b_enc=t(S, scale=0.1), W_enc=t(D, S), W_dec=t(S, D))
        state |= {"jumprelu.log_threshold": t(S) - 1} if kind == "jumprelu" else {}
        trained = tuple(state.values())
    saved = dict(epoch=50, step=31250, model_state_dict=state, optimizer_state_dict=optimiser(*trained))
    torch.save(saved | dict(config=said if config is None else config), path)

    def formula(x):
        norm = (
            np.linalg.norm(x, axis=1, keepdims=True) + 1e-8
        )  # theirs reads unit rows and gives them back; here those of x
        rows, mean, spread = standardised(x / norm) if normalize or kind == "topk" else (x / norm, 0.0, 1.0)
        if kind == "topk":
            bias, encoder = array(state["pre_bias"]), array(state["encoder.weight"])
            z = np.maximum(largest((rows - bias) @ encoder.T + array(state["latent_bias"]), k), 0)
            return z, ((z @ encoder + bias) * spread + mean) * norm
        b_dec, b_enc, W_enc, W_dec = (array(state[name]) for name in ("b_dec", "b_enc", "W_enc", "W_dec"))
        if kind == "jumprelu":
            z = np.maximum(rows @ W_enc + b_enc, 0)
            z = z * (z > np.exp(array(state["jumprelu.log_threshold"])))
        elif kind == "vanilla":
            z = np.maximum((rows - b_dec) @ W_enc + b_enc, 0)
        else:
            z = largest_of_all(np.maximum((rows - b_dec) @ W_enc, 0), k)
        return z, ((z @ W_dec + b_dec) * spread + mean) * norm

    return Written(path, formula)


def matryoshka_transcoders(folder: Path, D: int, O: int, levels, ks, *, name="", final=True, seed=0) -> Written:  # noqa: E741
    """Matryoshka Transcoders. levels: of a Matryoshka coder; one: of a flat one. O: D and a name with "sae" or
    "autoencoder" for the autoencoders. final: the file of the end, else the one of the best epoch."""
    t, S, nested = draws(seed), levels[-1], len(levels) > 1
    name = name or ("matryoshka_transcoder_0.pt" if nested else "simple_transcoder.pt")
    gamma, beta = torch.tensor(1.0), torch.tensor(1.0)
    state = OrderedDict({"encoder.0.weight": t(S, D), "encoder.0.bias": t(S, scale=0.1)})
    state |= {"encoder.1.gamma": gamma, "encoder.1.beta": beta}
    names = [f"decoders.{i}" for i in range(len(levels))] if nested else ["decoder"]
    for part, m in zip(names, levels, strict=True):
        state |= {f"{part}.weight": t(O, m), f"{part}.bias": t(O)}
    auto = "sae" in name or "autoencoder" in name
    config = {"input_dim": D} | ({"output_dim": None if auto else O} if not (auto and nested) else {})
    if nested:
        config |= dict(levels=list(levels), topk_per_level=list(ks), level_weights=[1 / len(levels)] * len(levels))
    else:
        config |= dict(latent_dim=S, topk=ks[0]) | (dict(mode="sae") if auto else {})
    saved = dict(epoch=100 if final else 57, model_state_dict=state, loss=0.1, config=config)
    saved["optimizer_state_dict"] = optimiser(*state.values())
    saved |= dict(level_losses=[0.1] * len(levels)) if nested else {}
    saved |= dict(level_losses_history={"level_0": [0.2, 0.1]}) if nested and final else {}
    torch.save(saved, folder / name)

    def formula(x):
        a = x @ array(state["encoder.0.weight"]).T + array(state["encoder.0.bias"])
        z = np.maximum(a, 0) + 1.0 * (a > 1.0)
        blocks = zip([0, *levels], levels, ks, strict=False)
        z = np.concatenate([largest(z[:, a:b], k) for a, b, k in blocks], 1)
        return z, z @ array(state[f"{names[-1]}.weight"]).T + array(state[f"{names[-1]}.bias"])

    return Written(folder / name, formula)


def sae_for_clip(folder: Path, D: int, S: int, kind: str = "final", *, k=4, seed=0) -> Written:
    """SAE-for-CLIP. kind: final, cleaned, best (which says no k)."""
    t = draws(seed)
    state = OrderedDict({"encoder_bias": t(S, scale=0.1), "encoder.weight": t(S, D), "decoder.weight": t(D, S)})
    clip = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "layer": 11}
    sae = {"d_model": D, "expansion_factor": S // D, "k": k, "sparsity_coeff": 0.0}
    training = {"dataset": {"name": "food101", "split": "train"}, "training": {"num_epochs": 15, "lr": 0.0002}}
    if kind == "best":
        metrics = dict(loss=0.1, mse=0.1, l1=0.0, l0=500.0, explained_variance=0.8, is_best=True)
        name, saved = "sae_best.pth", dict(epoch=15, optimizer_state_dict=optimiser(*state.values()), metrics=metrics)
    else:
        name, saved = (
            "sae_clip_vitb32_layer11_ef64.pth",
            dict(sae_config=dict(clip=clip, sae=sae), training_config=training),
        )
        more = dict(log_path="./logs/1", metrics=dict(dict_size=S, target_l0=k))
        saved |= more if kind == "final" else dict(evr=0.8)
    torch.save(saved | dict(model_state_dict=state), folder / name)

    def formula(x):
        a = np.maximum(x @ array(state["encoder.weight"]).T + array(state["encoder_bias"]), 0)
        z = largest(a, 500 if kind == "best" else k)
        return z, z @ array(state["decoder.weight"]).T

    return Written(folder / name, formula)


def alexnet(folder: Path, D: int, S: int, seed: int = 0) -> Written:
    """AlexNet-Transformer's sparse autoencoder."""
    t = draws(seed)
    state = OrderedDict(W_enc=t(D, S), W_dec=t(S, D), b_enc=t(S, scale=0.1), b_dec=t(D), theta=t(S).abs())
    state["epsilon"] = torch.tensor(0.001)
    torch.save(state, folder / "sae_block6_jump_relu.pth")

    def formula(x):
        a = x @ array(state["W_enc"]) + array(state["b_enc"])
        z = a * (a > array(state["theta"]))
        return z, z @ array(state["W_dec"]) + array(state["b_dec"])

    return Written(folder / "sae_block6_jump_relu.pth", formula)


def sae_lens(folder: Path, D: int, S: int, kind: str = "standard", *, seed=0, **more) -> Written:
    """SAELens 6, `save_inference_model`. kind: standard, topk, jumprelu; more: fields of cfg.json."""
    t, path = draws(seed), folder / "sae_weights.safetensors"
    state = {"W_enc": t(D, S), "b_enc": t(S, scale=0.1), "W_dec": t(S, D), "b_dec": t(D)}
    state |= {"threshold": t(S)} if kind == "jumprelu" else {}
    cfg = dict(d_in=D, d_sae=S, dtype="float32", device="cpu", apply_b_dec_to_input=True, normalize_activations="none")
    cfg |= dict(reshape_activations="none", metadata={"model_name": "vit", "hook_name": "blocks.6"}, architecture=kind)
    cfg |= (dict(k=4, rescale_acts_by_decoder_norm=False) if kind == "topk" else {}) | more
    save_file(state, path)
    (folder / "cfg.json").write_text(json.dumps(cfg))

    def formula(x):
        W_enc, b_enc, W_dec, b_dec = (array(state[name]) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
        spread, mean = 1.0, 0.0
        if cfg["normalize_activations"] == "layer_norm":
            x, mean, spread = standardised(x)
        elif cfg["normalize_activations"] == "constant_norm_rescale":
            spread = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(D)
            x = x / spread
        norm = np.linalg.norm(W_dec, axis=1) if cfg.get("rescale_acts_by_decoder_norm") else 1.0
        a = ((x - b_dec * cfg["apply_b_dec_to_input"]) @ W_enc + b_enc) * norm
        z = np.maximum(largest(a, 4) if "topk" in (kind, more.get("activation_fn_str")) else a, 0)
        z = z * (a > array(state["threshold"])) if kind == "jumprelu" else z
        return z, ((z / norm) @ W_dec + b_dec) * spread + mean

    return Written(path, formula)


def dictionary_learning(folder: Path, D: int, S: int, kind: str, *, config=True, seed=0) -> Written:
    """dictionary_learning's ae.pt. kind: its dict_class. config: whether config.json stands beside it."""
    t, threshold = draws(seed), torch.tensor(0.7)
    enc, bias, dec, dec_bias = t(D, S), t(S, scale=0.1), t(S, D), t(D)
    if kind in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        state = {"W_enc": enc, "b_enc": bias, "W_dec": dec, "b_dec": dec_bias}
    else:
        name = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
        state = {"encoder.weight": enc.T, "encoder.bias": bias, "decoder.weight": dec.T, name: dec_bias}
    if "TopK" in kind:
        state |= {"k": torch.tensor(4, dtype=torch.int), "threshold": threshold}
    state |= {"group_sizes": torch.tensor([10, S - 10])} if kind.startswith("Mat") else {}
    state |= {"threshold": t(S)} if kind.startswith("Jump") else {}
    torch.save(OrderedDict(state), folder / "ae.pt")
    trainer = dict(
        dict_class=kind, trainer_class="theirs", lr=1e-4, activation_dim=D, dict_size=S, layer=6, lm_name="vit"
    )
    if config:
        said = {"trainer": trainer | ({"k": 4} if "TopK" in kind else {}), "buffer": {"ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(said))

    def formula(x):
        W_enc, b_enc, W_dec, b_dec = map(array, (enc, bias, dec, dec_bias))
        norm = np.linalg.norm(W_dec, axis=1) if kind == "AutoEncoder" else 1.0
        a = ((x - b_dec * (kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))) @ W_enc + b_enc) * norm
        z = np.maximum(a, 0)
        z = largest(z, 4) if kind == "AutoEncoderTopK" else z * (a > array(state.get("threshold", torch.tensor(0.0))))
        return z, (z / norm) @ W_dec + b_dec

    return Written(folder / "ae.pt", formula)


def clip_classifier(folder: Path, D: int, O: int, seed: int = 0) -> Written:  # noqa: E741
    """Matryoshka Transcoders' classifier, with a stand-in for the CLIP in it. Its formula gives the hidden layer and the
    probability (N, 1)."""
    t = draws(seed)
    state = OrderedDict({"base.logit_scale": torch.tensor(4.6), "base.visual_projection.weight": t(D, 3)})
    state |= {"fc1.weight": t(O, D), "fc1.bias": t(O), "fc2.weight": t(1, O), "fc2.bias": t(1)}
    torch.save(state, folder / "clip_classifier.pt")

    def formula(x):
        h_1 = np.maximum(x @ array(state["fc1.weight"]).T + array(state["fc1.bias"]), 0)
        return h_1, 1 / (1 + np.exp(-(h_1 @ array(state["fc2.weight"]).T + array(state["fc2.bias"]))))

    return Written(folder / "clip_classifier.pt", formula)
