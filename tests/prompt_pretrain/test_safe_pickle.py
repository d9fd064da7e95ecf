import pickle
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch

from prompt_pretrain.errors import InputError
from prompt_pretrain.safe_pickle import (
    InertObject,
    is_torchscript_archive,
    read_torch_archive,
    read_torchscript_state,
)


def archive_of(path, data: bytes, entries: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        for name, content in (entries or {}).items():
            archive.writestr(f"a/{name}", content)
    return str(path)


def test_containers_and_tensors_survive(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    content = OrderedDict(
        half=base.half(), view=base[1:, ::2], same=base, parameter=torch.nn.Parameter(base), empty=torch.zeros(0, 3),
        flags=torch.tensor([True, False]), number=torch.tensor(3), bf16=base.bfloat16(), rest=[1, "a", (2.5, None)],
    )  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    found = read_torch_archive(tmp_path / "x.pt")
    assert list(found) == list(content) and found["rest"] == content["rest"]
    for key in set(content) - {"rest"}:
        assert torch.equal(found[key], content[key]) and found[key].dtype == content[key].dtype


class Thing(dict):
    pass


def test_foreign_objects_become_inert(tmp_path):
    thing = Thing(a=1)
    thing.attribute = [1]
    torch.save({"thing": thing, "default": defaultdict(list, b=[2]), "x": torch.ones(1)}, tmp_path / "x.pt")
    found = read_torch_archive(tmp_path / "x.pt")
    assert isinstance(found["thing"], InertObject) and isinstance(found["default"], InertObject)
    assert torch.equal(found["x"], torch.ones(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_state_has_dotted_names(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    assert is_torchscript_archive(tmp_path / "m.pt")
    state = read_torchscript_state(tmp_path / "m.pt")
    assert set(state) == set(module.state_dict())
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    torch.save(module.state_dict(), tmp_path / "s.pt")
    assert not is_torchscript_archive(tmp_path / "s.pt")
    torch.save(3, tmp_path / "n.pt")
    with pytest.raises(InputError, match="archive without parameters"):
        read_torchscript_state(tmp_path / "n.pt")


def test_tensors_cannot_leave_their_storage(tmp_path):
    torch.save({"x": torch.arange(4.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        root = archive.namelist()[0].split("/")[0]
        data, storage = archive.read(f"{root}/data.pkl"), archive.read(f"{root}/data/0")
    numbers = [argument for opcode, argument, _ in pickletools.genops(data) if opcode.name == "BININT1"]
    assert 4 in numbers
    wide = data.replace(b"K\x04\x85", b"K\x63\x85")  # a size of 99 over the storage of 4
    assert wide != data
    with pytest.raises(InputError, match="is damaged"):
        read_torch_archive(archive_of(tmp_path / "wide.pt", wide, {"data/0": storage}))


def test_compressed_and_foreign_archives_are_refused(tmp_path):
    data = pickle.dumps({"a": 1}, protocol=2)
    with pytest.raises(InputError, match="compressed entries, which torch never writes"):
        read_torch_archive(archive_of(tmp_path / "z.pt", data, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "o.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="a zip file but not one of torch"):
        read_torch_archive(tmp_path / "o.pt")
    with pytest.raises(InputError, match="is damaged"):
        read_torch_archive(archive_of(tmp_path / "cut.pt", data[:-3]))


def test_what_is_quoted_of_a_damaged_file_is_short(tmp_path):
    path = Path(archive_of(tmp_path / "x.pt", pickle.dumps({"a": 1}, protocol=2), {"data/0": bytes(9000)}))
    data = bytearray(path.read_bytes())
    # A directory and a header that do not agree on the name: zipfile quotes both, as long as the header says.
    at = data.index(b"PK\x03\x04") + 26
    data[at : at + 2] = (9000).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="x.pt is no torch file") as caught:
        read_torch_archive(path)
    assert len(str(caught.value)) < 600
    with pytest.raises(InputError, match="wants to call os.xxx") as caught:
        read_torch_archive(archive_of(path, b"cos\n" + b"x" * 9000 + b"\n."))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "subprocess\nPopen", "importlib\nimport_module", "sys\nexit"]
)
def test_suspicious_names_are_refused_before_anything_is_built(tmp_path, name):
    data = f"c{name}\n.".encode()
    with pytest.raises(InputError, match=f"wants to call {name.replace(chr(10), '.')}, which weights never need"):
        read_torch_archive(archive_of(tmp_path / "x.pt", data))
    assert read_torch_archive(tmp_path / "x.pt", allow_suspicious=True) is InertObject


def test_streams_cannot_change_the_reader(tmp_path):
    # BUILD with (None, {...}) sets attributes on whatever is on the stack, were it a function or a class
    for target in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "foreign\nThing"):
        data = b"\x80\x02c" + target.encode() + b"\nN}X\x01\x00\x00\x00aK\x01s\x86b."
        with pytest.raises(InputError, match="is damaged"):
            read_torch_archive(archive_of(tmp_path / "x.pt", data))
