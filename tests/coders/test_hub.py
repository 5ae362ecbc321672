"""A coder pushed to a hub and loaded from it, over HTTP; damage on the way is refused."""

import os
import subprocess
import sys

import pytest
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from tests.coders import hub_server

PUSH_AND_LOAD = """
import sys, torch
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
coder = SparseCoder(SparseCoderConfig.preset("topk", 6, 6, n_latents=16, k=2), seed=4)
coder.save_pretrained(sys.argv[1], result={"fvu": 0.25})
coder.push_to_hub("someone/coder")
again = SparseCoder.from_pretrained("someone/coder")
assert again.config == coder.config and again.recorded == {"result": {"fvu": 0.25}}
assert all(torch.equal(a, b) for a, b in zip(coder.state_dict().values(), again.state_dict().values(), strict=True))
"""
LOAD = """
import sys
from mtlib.coders.sparse_coder import SparseCoder
try:
    SparseCoder.from_pretrained("someone/coder", force_download=True)
except ValueError as e:
    print(e)
"""


def _run(code: str, address: str, home, *arguments: str) -> str:
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_none"}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_coder_goes_to_the_hub_and_back(tmp_path):
    with hub_server.serve() as (address, repositories):
        _run(PUSH_AND_LOAD, address, tmp_path / "home", str(tmp_path / "coder"))
        pushed = repositories["someone/coder"]
        assert sorted(name for name in pushed if not name.startswith(".")) == ["config.json", "weights.safetensors"]
        assert pushed["weights.safetensors"] == (tmp_path / "coder" / "weights.safetensors").read_bytes()
        pushed["weights.safetensors"] = pushed["weights.safetensors"][:-40]
        assert "weights.safetensors: not a valid safetensors file" in _run(LOAD, address, tmp_path / "home2")


def test_what_training_recorded_stays_with_a_coder(tmp_path):
    coder = SparseCoder(SparseCoderConfig.preset("sae", 6, 6, n_latents=16, k=2))
    coder.save_pretrained(tmp_path / "a", fit="key")
    SparseCoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert torch.equal(SparseCoder.from_pretrained(tmp_path / "b").enc, coder.enc)
