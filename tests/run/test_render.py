"""Readable copies hold the result, and nothing of the machine or the moment."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mtlib.run import render


def png(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def executed(tmp_path):
    root = tmp_path / "repo"
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 600)
    photo = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], 200 - ramp[:, None] + 0 * ramp], axis=2)
    photo = photo + rng.integers(0, 20, photo.shape)
    outputs = [
        new_output(
            "stream", name="stdout", text=f"10%|# | 1/9\r99%|####| [00:01<00:00, 5it/s]\n{root}/runs/x\nkept 3\n"
        ),
        new_output("stream", name="stderr", text="100%|#####| 9/9 [00:02<00:00, 3.1it/s]\n"),
        new_output(
            "display_data", data={"text/plain": "<Figure at 0x7f0011223344>", "image/png": png(np.zeros((4, 4), "u1"))}
        ),
        new_output("display_data", data={"image/png": png(photo.astype("u1"))}),
    ]
    code = new_code_cell("images = '/data/of/someone/photos'", outputs=outputs, execution_count=3)
    code.metadata = {
        "papermill": {"start_time": "2026-01-01"},
        "execution": {"iopub.execute_input": "x"},
        "tags": ["a"],
    }
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), code], metadata={"papermill": {"duration": 3}})
    nbformat.write(notebook, tmp_path / "e.ipynb")
    return tmp_path / "e.ipynb", root


def test_clean_takes_out_times_paths_bars_and_addresses(executed):
    path, root = executed
    notebook = render.clean(path, root, ["/data/of/someone/photos"])
    code = notebook.cells[1]
    assert code.source == "images = '.../photos'"
    assert dict(code.metadata) == {"tags": ["a"]}
    assert notebook.metadata == {}
    assert len(code.outputs) == 3, "the output that was only a progress bar is gone"
    assert code.outputs[0].text == "runs/x\nkept 3\n"
    assert code.outputs[1].data["text/plain"] == "<Figure at 0x...>"
    assert "image/png" in code.outputs[1].data
    assert set(code.outputs[2].data) == {"image/jpeg"}
    assert [c["id"] for c in notebook.cells] == ["cell-1", "cell-2"]


def test_render_is_repeatable_and_asks_no_host(executed, tmp_path):
    path, root = executed
    for name in ("a", "b"):
        render.render(path, tmp_path / name, root, [])
    for suffix in (".ipynb", ".html"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    html = (tmp_path / "a.html").read_text()
    assert "kept 3" in html
    assert "data:image/jpeg;base64," in html
    assert 'src=""' not in html
    assert "<script src=" not in html
