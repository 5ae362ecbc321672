"""The coder class: its family relations, inference without batch-mates, files, presets and settings."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtlib.coders import upkeep
from mtlib.coders.presets import PRESETS, coder_settings
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.learn.config import TrainConfig
from mtlib.learn.optimiser import AdamW

D, O, S, B = 12, 10, 32, 16  # noqa: E741


def _coder(name: str, **overrides) -> SparseCoder:
    config = SparseCoderConfig.preset(name, D, O, **({"n_latents": S} | overrides))
    coder = SparseCoder(config, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for bias in coder.dec_bias:
            bias.normal_()
        coder.enc_bias.normal_(std=0.1)
        coder.x_mean.normal_()
        coder.x_scale.uniform_(0.5, 2)
        coder.y_mean.normal_()
        coder.y_scale.uniform_(0.5, 2)
    return coder


def _x(n: int = B, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_forward_and_backward(name):
    coder = _coder(name)
    z, y_hats = coder(_x())
    assert z.shape == (B, S) and len(y_hats) == len(coder.config.levels) and (z >= 0).all()
    assert all(y.shape == (B, coder.config.d_out) for y in y_hats)
    loss, parts = coder.train().loss(_x(), torch.randn(B, coder.config.d_out))
    loss.backward()
    used = [p for p in coder.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in used)
    total = sum(parts[k] for k in ("reconstruction", "penalty", "mono", "aux") if k in parts)
    torch.testing.assert_close(total, loss.detach())


@pytest.mark.parametrize("name", PRESETS)
def test_code_never_depends_on_batch_mates(name):
    coder = _coder(name).train()
    for seed in range(3):
        coder.loss(_x(seed=seed), torch.zeros(B, coder.config.d_out))  # running thresholds move
    z = coder.encode(_x())
    alone = torch.cat([coder.encode(row[None]) for row in _x()])
    torch.testing.assert_close(z, alone)
    assert torch.equal(coder.encode(_x()), coder.eval().encode(_x()))  # train mode changes nothing at inference


@pytest.mark.parametrize("name", PRESETS)
def test_public_weights_give_the_published_formula(name):
    coder = _coder(name)
    if not coder.config.by_row:  # which is no linear map of x
        z_pre = (_x() - coder.b_pre) @ coder.W_enc + coder.b_enc
        torch.testing.assert_close(z_pre, coder._pre(_x()), rtol=1e-4, atol=1e-5)
    z = coder.encode(_x())
    torch.testing.assert_close(z @ coder.W_dec + coder.b_dec, coder.decode(z), rtol=1e-4, atol=1e-4)
    for level, y_hat in enumerate(coder(_x()).y_hats):
        torch.testing.assert_close(coder.decode(z, level, _x()), y_hat, rtol=1e-4, atol=1e-5)


def test_rows_in_float64_get_the_codes_of_float32():
    coder = SparseCoder(SparseCoderConfig.preset("sae", 6, 6, l0=3, n_latents=12)).eval()
    x = torch.randn(5, 6)
    for z, again in ((coder.encode(x), coder.encode(x.double())), (coder.encode_all(x), coder.encode_all(x.double()))):
        assert torch.equal(z, again) and torch.equal(coder.decode(z), coder.decode(z.double()))


def test_rows_by_themselves_know_neither_scale_nor_offset_and_get_them_back():
    coder = _coder("monoloss_jumprelu")
    x, other = _x(), 3 * _x() + 5
    coder.x_mean.zero_(), coder.y_mean.zero_()
    torch.testing.assert_close(coder.encode(x), coder.encode(other), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(3 * coder(x).y_hats[0] + 5, coder(other).y_hats[0], rtol=1e-3, atol=1e-3)
    z = coder.encode(x)
    torch.testing.assert_close(coder.decode(z), z @ coder.W_dec + coder.b_dec)  # an average row's
    with pytest.raises(ValueError, match="target_scale"):
        SparseCoderConfig.preset("transcoder", D, O, target_scale="rows")


def test_one_level_equals_the_plain_coder():
    plain = _coder("transcoder", ks=(4,))
    for selection in ("block_topk", "batch_topk", "nested_topk"):
        levels = dict(selection=selection, levels=(S,), ks=(4,), decoder="shared", level_weights=(1.0,))
        one = SparseCoder(plain.config.with_(**levels))
        one.load_state_dict(plain.state_dict())
        if selection == "batch_topk":  # for a single row, the batch's budget is the row's
            rows = [one.train().loss(x[None], torch.zeros(1, O))[0] for x in _x()]
            expected = [plain.loss(x[None], torch.zeros(1, O))[0] for x in _x()]
            torch.testing.assert_close(torch.stack(rows), torch.stack(expected))
        else:
            torch.testing.assert_close(one(_x()), plain(_x()))
            torch.testing.assert_close(one.loss(_x(), torch.zeros(B, O))[0], plain.loss(_x(), torch.zeros(B, O))[0])


def test_prefix_decode_equals_the_slice_of_the_shared_decoder():
    coder = _coder("matryoshka_transcoder_shared", ks=(6,))
    z = coder.encode(_x())
    for level, m in enumerate(coder.config.levels):
        torch.testing.assert_close(coder.decode(z, level), z[:, :m] @ coder.W_dec[:m] + coder.b_dec)


def test_nested_levels_cut_codes_to_their_k():
    coder = _coder("msae_uw", ks=(1, 3, 8))
    z = coder.encode(_x())
    kept = torch.zeros_like(z).scatter(1, z.topk(3).indices, z.topk(3).values)
    torch.testing.assert_close(coder.decode(z, 1), coder.decode(kept, -1))


def test_tied_decoder_is_the_encoder_transposed():
    coder = _coder("sae", tied=True, selection="none", ks=())
    assert "dec.0" not in coder.state_dict()
    assert torch.equal(coder._decoder(0), coder.enc.T)


def test_unit_norm_is_along_the_output_axis():
    coder = _coder("topk")
    with torch.no_grad():
        coder.dec[0].mul_(3)
    upkeep.after_step(coder)
    torch.testing.assert_close(coder.dec[0].norm(dim=1), torch.ones(S))


def test_aux_is_part_of_the_loss_only_with_dead_latents():
    coder = _coder("matryoshka_transcoder_shared", ks=(4,)).train()
    assert coder.loss(_x(), torch.randn(B, O))[1]["aux"].item() == 0.0
    coder.rows_since_fired.fill_(10**6)
    assert coder.loss(_x(), torch.randn(B, O))[1]["aux"].item() > 0.0


def test_evaluation_changes_no_buffer():
    coder = _coder("batch_topk", ks=(4,)).eval()
    before = {k: v.clone() for k, v in coder.state_dict().items()}
    coder(_x())
    coder.loss(_x(), torch.zeros(B, D))
    assert all(torch.equal(before[k], v) for k, v in coder.state_dict().items())


@pytest.mark.parametrize("name", ["matryoshka_transcoder", "matryoshka_transcoder_shared", "msae_uw", "batch_topk"])
def test_overfits_one_batch(name):
    coder = _coder(name, l0=16, init_norm=1.0)
    y = torch.randn(B, coder.config.d_out, generator=torch.Generator().manual_seed(2)) + coder.y_mean
    optimiser = AdamW(coder.train().named_parameters())
    first = None
    for _ in range(150):
        loss, parts = coder.loss(_x(), y)
        first = parts["error"] if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(2e-2)
        upkeep.after_step(coder)
    assert parts["error"] < 0.05 * first  # of the last level


def test_adamw_follows_its_formula_with_a_rate_of_its_own_for_theta():
    coder = _coder("alexnet")
    optimiser = AdamW(coder.named_parameters(), weight_decay=0.1, groups={"theta": 10.0})
    p = {k: w.detach().double() for k, w in coder.named_parameters()}
    m, v = {k: 0.0 for k in p}, {k: 0.0 for k in p}
    for t in (1, 2, 3):
        optimiser.zero_grad()
        coder.loss(_x(), torch.zeros(B, D))[0].backward()
        for k, w in coder.named_parameters():
            g = w.grad.double()
            lr, decay = (1e-2, 0.0) if k == "theta" else (1e-3, 0.1)
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
            step = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            p[k] = p[k] * (1 - lr * decay) - lr * step
        optimiser.step(1e-3)
    for k, w in coder.named_parameters():
        torch.testing.assert_close(w.detach().double(), p[k], rtol=1e-4, atol=1e-6)


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_save_and_load_round_trip(name, tmp_path):
    coder = _coder(name)
    coder.save_pretrained(tmp_path, note="extra values are kept beside the settings")
    again = SparseCoder.from_pretrained(tmp_path)
    assert again.config == coder.config
    torch.testing.assert_close(again(_x()), coder.eval()(_x()), rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


def test_from_pretrained_refuses_nan_and_wrong_shapes(tmp_path):
    _coder("topk").save_pretrained(tmp_path)
    path = tmp_path / "weights.safetensors"
    good = load_file(path)
    save_file(good | {"enc": good["enc"] * float("nan")}, path)
    with pytest.raises(ValueError, match="enc holds NaN"):
        SparseCoder.from_pretrained(tmp_path)
    save_file(good | {"enc": torch.zeros(5, 7)}, path)
    with pytest.raises(ValueError, match=rf"enc has shape \(5, 7\), expected \({D}, {S}\)"):
        SparseCoder.from_pretrained(tmp_path)
    save_file({k: v for k, v in good.items() if k != "enc"}, path)
    with pytest.raises(ValueError, match="'enc' is missing"):
        SparseCoder.from_pretrained(tmp_path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"weights\.safetensors: not a valid"):
        SparseCoder.from_pretrained(tmp_path)


def test_from_pretrained_names_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        SparseCoder.from_pretrained(tmp_path / "nothing")


def test_wrong_input_names_both_shapes():
    with pytest.raises(ValueError, match=rf"\(3, 5\), expected \(B, {D}\)"):
        _coder("topk").encode(torch.zeros(3, 5))


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=5000), "ks = .5000,.*between 1 and the 512"),
        (dict(penalty_weight=float("nan")), "penalty_weight = nan"),
        (dict(penalty_weight=-1.0), "penalty_weight = -1.0: should be greater than or equal to 0"),
        (dict(selection="best"), "selection = 'best': should be 'none', 'topk'"),
        (dict(levels=(600, 512)), r"levels = \(600, 512\)"),
        (dict(penalty="l0_sigmoid"), "only with activation = jumprelu"),
        (dict(level_weights=(0.5, 0.5)), "level_weights"),
        (dict(dead_after=0), "dead_after = 0"),
    ],
)
def test_bad_settings_name_field_value_and_range(change, message):
    with pytest.raises(ValueError, match=message):
        SparseCoderConfig.preset("sae", 64, 32, **({"n_latents": 512} | change))


@pytest.mark.parametrize("change", [dict(lr=0.0), dict(steps=-1), dict(warmup=1.0), dict(schedule="step")])
def test_bad_training_settings_name_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainConfig(**change)


def test_published_sizes_and_proportional_scaling():
    published = SparseCoderConfig.preset("matryoshka_transcoder", 768, 256)
    assert published.levels == (128, 256, 512, 1024, 2048) and published.l0 == 496 and published.d_out == 256
    small = SparseCoderConfig.preset("matryoshka_transcoder", 768, 256, n_latents=512)
    assert small.levels == (32, 64, 128, 256, 512) and small.ks == (4, 8, 16, 32, 64)
    aimed = SparseCoderConfig.preset("matryoshka_transcoder", 768, 256, n_latents=512, l0=32)
    assert aimed.ks == (2, 3, 4, 8, 15) and aimed.ks == small.with_l0(32).ks
    assert sum(aimed.ks) == 32 and min(aimed.ks) >= 1 and aimed.levels == small.levels
    with pytest.raises(ValueError, match="l0 = 4 cannot be shared out over 5 blocks"):
        small.with_l0(4)
    assert SparseCoderConfig.preset("msae_rw", 768, 0).level_weights[0] == pytest.approx(8 / 36)
    assert SparseCoderConfig.preset("sae", 768, 256).d_out == 768
    with pytest.raises(ValueError, match="unknown preset 'sea'; there are"):
        coder_settings("sea")


def test_config_json_is_readable_and_without_paths(tmp_path):
    _coder("sae").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["n_latents"] == S and saved["levels"] == [S]
