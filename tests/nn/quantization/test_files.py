import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import (
    load_quantized,
    quantize_static,
    quantize_weights,
    save_quantized,
    size_on_disk,
)


@pytest.fixture(scope="module")
def file(network, images, tmp_path_factory):
    quantized = quantize_static(network, [images])
    return save_quantized(quantized, tmp_path_factory.mktemp("files") / "deep" / "model.pt2"), quantized


def test_a_static_network_answers_the_same_once_loaded(file, images):
    path, quantized = file
    loaded = load_quantized(path)
    for size in (1, 3, 16):
        assert torch.equal(loaded(images[:size]), quantized.module(images[:size]))
    assert not loaded.training
    assert list(path.parent.iterdir()) == [path]


def test_a_network_with_int8_weights_answers_the_same_once_loaded(network, images, tmp_path):
    quantized = quantize_weights(network, images)
    loaded = load_quantized(save_quantized(quantized, tmp_path / "model.pt2"))
    assert torch.equal(loaded(images[:5]), quantized.module(images[:5]))


def test_the_file_holds_no_float_weights(tmp_path):
    network = nn.Sequential(nn.Linear(512, 512))
    path = save_quantized(quantize_static(network, [torch.randn(4, 512)]), tmp_path / "model.pt2")
    assert path.stat().st_size < 0.35 * size_on_disk(network)


def test_compression_counts_fewer_bytes_for_weights_that_repeat():
    layer = nn.Linear(100, 100)
    nn.init.zeros_(layer.weight)
    assert size_on_disk(layer, compressed=True) < size_on_disk(layer) / 10


def test_an_interrupted_write_leaves_the_old_file(file, monkeypatch):
    path, quantized = file
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        save_quantized(quantized, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_another_ending_is_refused(file):
    with pytest.raises(ConfigurationError, match=r"must end in \.pt2"):
        save_quantized(file[1], "model.pt")


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _changed(path, target, change):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_pickled_objects_are_refused_and_not_run(file, tmp_path):
    ran = tmp_path / "ran"

    def hostile_inputs(name, content):
        buffer = io.BytesIO()
        torch.save((_Touch(ran),), buffer)
        return buffer.getvalue() if name.endswith(".pt") else content

    def hostile_weight(name, content):
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config)
        return pickle.dumps(_Touch(ran)) if "/weight_" in name else content

    for number, change in enumerate((hostile_inputs, hostile_weight)):
        bad = _changed(file[0], tmp_path / f"{number}.pt2", change)
        with pytest.raises(ConfigurationError, match="is no quantised network"):
            load_quantized(bad)
    assert not ran.exists()


def test_damaged_missing_and_foreign_files_are_refused_in_one_line(file, tmp_path):
    truncated, foreign = tmp_path / "truncated.pt2", tmp_path / "foreign.pt2"
    truncated.write_bytes(file[0].read_bytes()[:-3000])
    torch.save({}, foreign)
    garbled = _changed(file[0], tmp_path / "garbled.pt2", lambda name, it: b"{" if "models/" in name else it)
    for path, message in (
        (truncated, "not a zip file"),
        (foreign, "was not written by save_quantized"),
        (garbled, "is no quantised network"),
        (tmp_path / "none.pt2", "is no file"),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            load_quantized(path)
        assert "\n" not in str(caught.value)
