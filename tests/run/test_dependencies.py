"""What a stage's hash follows, and what it does not."""

import os

import pytest

from mtlib.run import dependencies
from mtlib.run.params import ParamsError
from mtlib.run.stage import Stage


@pytest.fixture
def tree(tmp_path):
    """notebook -> pkg.a -> pkg.sub.b (relative), with data beside b; pkg.other is not reached."""
    files = {
        "nb.py": "from pkg.a import f\nimport os.path\nstage = '02_b'\n",
        "pkg/__init__.py": "",
        "pkg/a.py": "from pkg import sub\n\n\ndef f():\n    from .sub import b\n    return '01_a'\n",
        "pkg/other.py": "X = '03_c'\n",
        "pkg/sub/__init__.py": "",
        "pkg/sub/b.py": "",
        "pkg/sub/data/words.txt": "one",
        "pkg/lazy.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def reached(tree):
    return set(dependencies.modules(tree / "nb.py", tree / "pkg"))


def test_modules_follow_imports_in_functions_and_relative(tree):
    assert reached(tree) == {
        "pkg/__init__.py",
        "pkg/a.py",
        "pkg/sub/__init__.py",
        "pkg/sub/b.py",
        "pkg/sub/data/words.txt",
    }


def test_modules_follow_dotted_text(tree):
    (tree / "nb.py").write_text("import importlib\nimportlib.import_module('pkg.lazy')\n")
    assert reached(tree) == {"pkg/__init__.py", "pkg/lazy.py"}


def test_stages_read_are_those_spelled_out(tree):
    assert dependencies.stages_read(tree / "nb.py", tree / "pkg", ["01_a", "02_b", "03_c"]) == ["01_a", "02_b"]


def stage_hash(tree, params=None, inputs=None):
    return dependencies.stage_hash(tree / "nb.py", tree / "pkg", params or {}, inputs or {}, tree, {})


def test_hash_follows_each_part_and_nothing_else(tree):
    first = stage_hash(tree)
    (tree / "pkg/other.py").write_text("X = 2\n")
    assert stage_hash(tree) == first
    assert stage_hash(tree, {"n": 1}) != first
    assert stage_hash(tree, inputs={"01_a": "x"}) != first
    (tree / "pkg/sub/data/words.txt").write_text("two")
    assert (second := stage_hash(tree)) != first
    (tree / "pkg/sub/b.py").write_text("Y = 1\n")
    assert (third := stage_hash(tree)) != second
    (tree / "nb.py").write_text((tree / "nb.py").read_text() + "# more\n")
    assert stage_hash(tree) != third


def test_hash_follows_the_users_files(tree):
    (tree / "photos").mkdir()
    (tree / "photos/a.png").write_text("a")
    given = {"images": "photos", "pretrained": "w.npy", "judge": "pkg"}
    (tree / "w.npy").write_text("w")
    assert set(dependencies.external_inputs(given, tree)) == {"photos", "w.npy"}
    first = stage_hash(tree, given)
    (tree / "photos/b.png").write_text("b")
    assert (second := stage_hash(tree, given)) != first
    os.utime(tree / "photos/b.png", (1, 1))
    assert (third := stage_hash(tree, given)) != second
    (tree / "w.npy").write_text("v")
    assert (fourth := stage_hash(tree, given)) != third
    (tree / "words.txt").write_text("names beside the array")
    assert stage_hash(tree, given) != fourth


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", "local-dir:given"),
        ("encoder", "local-dir:{root}/given"),
        ("pretrained", "given"),
        ("zero_shot_images", ["given"]),
        ("zero_shot_images", ["torchvision:CIFAR10", "hf:given:test"]),
        ("images", "hf:{root}/given:train"),
        ("images", "hf:given"),
        ("second_data", "given"),
    ],
)
def test_hash_follows_whatever_name_a_parameter_gives_a_folder(tree, key, value):
    (tree / "given").mkdir()
    (tree / "given" / "part").write_text("1")
    values = [v.format(root=tree) for v in value] if isinstance(value, list) else value.format(root=tree)
    first = stage_hash(tree, {key: values})
    assert stage_hash(tree, {key: values}) == first
    (tree / "given" / "part").write_text("22")
    assert stage_hash(tree, {key: values}) != first


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.lmdb", "features"])
def test_hash_follows_the_text_beside_features_of_every_kind(tree, name):
    if "." in name and name != "x.lmdb":
        (tree / name).write_text("rows")
    else:
        (tree / name).mkdir()
        (tree / name / "data.mdb").write_text("rows")
    (tree / "names.txt").write_text("one")
    first = stage_hash(tree, {"embeddings": name})
    (tree / "names.txt").write_text("two")
    assert stage_hash(tree, {"embeddings": name}) != first


def test_texts_that_name_no_file_are_left_alone(tree):
    texts = {"remark": "~5% of the images. See a/b", "images": "hf:", "pretrained": "", "embeddings": "."}
    assert dependencies.external_inputs(texts, tree) == {}


def test_fingerprint_of_a_folder_takes_odd_names_and_links(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "new\nline").write_text("")
    open(os.fsencode(tmp_path / "d") + b"/\xff.png", "w").close()
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    os.mkfifo(tmp_path / "d" / "pipe")
    assert len(dependencies.fingerprint(tmp_path / "d")) == 16


def test_check_inputs_names_what_is_missing_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="images = nowhere: no such file or folder"):
        dependencies.check_inputs({"images": "nowhere"}, tmp_path)
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="images = empty: the folder holds no file"):
        dependencies.check_inputs({"images": "empty"}, tmp_path)
    with pytest.raises(FileNotFoundError, match="zero_shot_images = nowhere: no such file or folder"):
        dependencies.check_inputs({"zero_shot_images": ["torchvision:CIFAR10", "nowhere"]}, tmp_path)
    dependencies.check_inputs({"images": "", "judge": "nowhere", "zero_shot_images": []}, tmp_path)


def test_a_device_or_pipe_is_refused_under_any_name_and_in_folders_whose_files_are_opened(tmp_path):
    for folder in ("model", "photos"):
        (tmp_path / folder).mkdir()
        os.mkfifo(tmp_path / folder / "pipe.pt")
    (tmp_path / "link.npy").symlink_to("/dev/zero")
    (tmp_path / "named.json").write_text('{"train": "model/pipe.pt"}')
    for given in (
        {"images": "/dev/zero"},
        {"remark": "/dev/null"},
        {"embeddings": "link.npy"},
        {"encoder": "local-dir:model"},
        {"checkpoint": "model"},
        {"images": "hf:photos"},
        {"templates": ["a", "model/pipe.pt"]},
        {"methods": [{"name": "a", "checkpoint": "model/pipe.pt"}]},
    ):
        with pytest.raises(ParamsError, match="a device or pipe may never end"):
            dependencies.check_inputs(given, tmp_path)
    with pytest.raises(ParamsError, match=r"pipe\.pt: a device or pipe"):
        dependencies.external_inputs({"embeddings": "named.json"}, tmp_path)
    dependencies.check_inputs(
        {"images": "photos", "remark": "a / b", "encoder": ".", "pretrained": "nowhere"}, tmp_path
    )
    with pytest.raises(ParamsError, match="a device or pipe"):  # in Jupyter, too
        Stage("01_embed", str(tmp_path / "run"), params={"images": "/dev/zero"})


def test_a_table_of_images_stands_for_the_files_beside_it(tree):
    (tree / "photos").mkdir()
    (tree / "photos" / "list.csv").write_text("path\na.png\n")
    (tree / "photos" / "a.png").write_bytes(b"1")
    before = dependencies.external_inputs({"images": "photos/list.csv"}, tree)
    (tree / "photos" / "a.png").write_bytes(b"22")
    assert dependencies.external_inputs({"images": "photos/list.csv"}, tree) != before
    assert set(dependencies.external_inputs({"images": "hf:photos"}, tree)) == {"hf:photos"}


def test_named_data_sets_and_word_lists_are_no_missing_files(tree):
    dependencies.check_inputs({"images": "torchvision:CIFAR10", "vocabulary": "wordfreq:20000"}, tree)
    with pytest.raises(FileNotFoundError, match="images = torchvision/CIFAR10"):
        dependencies.check_inputs({"images": "torchvision/CIFAR10"}, tree)


def test_a_long_text_names_no_file(tmp_path):
    assert dependencies.external_inputs({"remark": "a/b. " * 200}, tmp_path) == {}
