"""A calibration's file: what is written is read again, and whatever else it may be is one sentence."""

import dataclasses
import json
import os
import pickle
import struct
import weakref

import pytest
import torch
from safetensors.torch import load_file

from headcount.calibration import Calibration
from headcount.errors import InputError, RunError
from headcount.tensor_files import TensorFile
from tests.calibration.made import LAYERS, calibration, facts


@pytest.fixture
def file(tmp_path):
    calibration().save(tmp_path / "made.safetensors")
    return tmp_path / "made.safetensors"


def parts(file):
    """Header and the bytes of the tensors."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(file, header, tensors):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + tensors)


def said(header, **changed):
    """The header with other facts beside the tensors."""
    facts = json.loads(header["__metadata__"]["headcount"]) | changed
    return header | {"__metadata__": {"headcount": json.dumps(facts)}}


def test_what_is_written_is_read_again(file):
    known, found = calibration(), Calibration.load(file)
    assert found.facts == known.facts
    assert found.fingerprint == known.fingerprint
    for index, layer in known.layers.items():
        for name, value in vars(layer).items():
            again = getattr(found.layers[index], name)
            assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value
    content = file.read_bytes()
    found.save(file)
    assert file.read_bytes() == content
    halves = 17 * 18 // 2 + 5 * 6 // 2
    assert load_file(file)["0.covariance"].shape == (17 * 18 // 2,)
    assert len(parts(file)[1]) == 2 * 4 * (2 * 12 + 5 + halves)


def test_matrices_are_read_when_they_are_used_and_one_at_a_time(file, monkeypatch):
    known, names, alive, read = calibration(), [], [], TensorFile.read

    def noting(self, name):
        assert not any(matrix() is not None for matrix in alive), "two matrices at once"
        names.append(name)
        tensor = read(self, name)
        alive.extend([weakref.ref(tensor)] * name.endswith(("covariance", "gradients")))
        return tensor

    monkeypatch.setattr(TensorFile, "read", noting)
    found = Calibration.load(file)
    assert names.count("0.covariance") == names.count("2.gradients") == 2  # checked, and held to the fingerprint
    names.clear()
    assert found.fingerprint == known.fingerprint
    assert found.layers[0].holds == known.layers[0].holds
    assert torch.equal(found.layers[2].mean, known.layers[2].mean)
    assert names == []
    for _ in range(2):
        assert torch.equal(found.precision(2), known.precision(2))
    assert names == ["2.covariance"]
    assert torch.equal(found.layers[0].gradients, known.layers[0].gradients)
    assert names == ["2.covariance", "0.gradients"]


def test_a_calibration_that_is_sent_elsewhere_needs_no_file(file):
    sent = pickle.dumps(Calibration.load(file))
    file.unlink()
    found, known = pickle.loads(sent), calibration()
    assert found.fingerprint == known.fingerprint
    assert torch.equal(found.precision(0), known.precision(0))


@pytest.mark.parametrize("change", ["altered", "another", "gone"])
def test_a_file_that_changes_while_it_is_in_use_is_refused(file, change):
    found = Calibration.load(file)
    if change == "altered":
        header, tensors = parts(file)
        write(file, header, tensors[:-4] + b"\0\0\0\1")
    elif change == "another":
        calibration(seed=5).save(file)
    else:
        file.unlink()
    with pytest.raises(InputError, match=r"cannot be read any more \(.*\)\. Load it again"):
        found.precision(0)


def test_layers_are_in_the_models_order(tmp_path):
    """Names of 11 layers are in another order than their numbers."""
    layer, many = calibration().layers[0], tuple(dataclasses.replace(LAYERS[0], index=i) for i in range(11))
    known = Calibration(layers=dict.fromkeys(reversed(range(11)), layer), facts=facts(layers=many))
    known.save(tmp_path / "f")
    found = Calibration.load(tmp_path / "f")
    assert [*found.layers] == [*known.layers] == [*range(11)]
    assert found.fingerprint == known.fingerprint


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        calibration().save(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def shorter(header, tensors):
    return header, tensors[:-4]


def longer(header, tensors):
    return header, tensors + b"\0\0\0\0"


def altered(header, tensors):
    return header, tensors[:-4] + struct.pack("<f", 1.5)


def not_finite(header, tensors):
    return header, struct.pack("<f", float("nan")) + tensors[4:]


def overlapping(header, tensors):
    return header | {"0.first": header["0.first"] | {"data_offsets": [0, 48]}}, tensors


def other_dtype(header, tensors):
    return header | {"0.mean": header["0.mean"] | {"dtype": "I32"}}, tensors


def huge(header, tensors):
    return header | {"0.mean": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**82]}}, tensors


def nested(header, tensors):
    return b"[" * 200_000, tensors


def no_json(header, tensors):
    return b"{" * 16, tensors


def a_list(header, tensors):
    return [], tensors


def other_format(header, tensors):
    return said(header, format=2), tensors


def other_names(header, tensors):
    return {name.replace("0.first", "0.last"): entry for name, entry in header.items()}, tensors


def other_layer(header, tensors):
    return {name.replace("0.", "1."): entry for name, entry in header.items()}, tensors


def other_shape(header, tensors):
    return header | {"0.mean": header["0.mean"] | {"shape": [4, 3]}}, tensors


def no_facts(header, tensors):
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, tensors


def negative_count(header, tensors):
    counts = json.loads(header["__metadata__"]["headcount"])["counts"]
    return said(header, counts=counts | {"0": counts["0"] | {"count": -1}}), tensors


def infinite_sensitivity(header, tensors):
    counts = json.loads(header["__metadata__"]["headcount"])["counts"]
    return said(header, counts=counts | {"0": counts["0"] | {"sensitivity": float("inf")}}), tensors


def other_heads(header, tensors):
    facts = json.loads(header["__metadata__"]["headcount"])["facts"]
    facts["layers"][0]["num_attention_heads"] = 60_000
    return said(header, facts=facts), tensors


def other_size(header, tensors):
    facts = json.loads(header["__metadata__"]["headcount"])["facts"]
    return said(header, facts=facts | {"hidden_size": 10**30}), tensors


@pytest.mark.parametrize(
    "change",
    [
        shorter, longer, altered, not_finite, overlapping, other_dtype, huge, nested, no_json, a_list, other_format, other_names,
        other_layer, other_shape, no_facts, negative_count, infinite_sensitivity, other_heads, other_size,
    ],
)  # fmt: skip
def test_a_file_of_a_stranger_is_refused_in_a_sentence(file, change):
    write(file, *change(*parts(file)))
    with pytest.raises(InputError) as raised:
        Calibration.load(file)
    message = str(raised.value)
    assert message.startswith(f"{str(file)!r} is not a calibration as headcount writes it (")
    assert message.endswith("Make one with `headcount calibrate MODEL --texts … -o FILE`.")
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 100, b"\0" * 100, b"text\n"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InputError, match="is not a calibration as headcount writes it"):
        Calibration.load(tmp_path / "f")


def test_only_plain_files_are_opened(file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "through").symlink_to(tmp_path / "pipe")
    assert Calibration.load(tmp_path / "link").fingerprint == calibration().fingerprint
    for name in ("pipe", "through", "nowhere", "."):
        with pytest.raises(InputError, match=r"The calibration .* cannot be read \("):
            Calibration.load(tmp_path / name)
