"""The streamed writer: the same file as `Mask.save`, and never half of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from tests.masks.masks import any_mask, example_mask
from trimtab.errors import OutputExistsError
from trimtab.masks.header import MaskHeader
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import mask_writer, write_mask_file
from trimtab.masks.packed import PackedTensor


def outline_of(mask: Mask) -> MaskHeader:
    """All of a mask but its bits."""
    return MaskHeader({n: mask.shape(n) for n in mask}, mask.base, mask.provenance)


@given(mask=any_mask())
def test_a_tensor_at_a_time(tmp_path_factory: pytest.TempPathFactory, mask: Mask) -> None:
    path = tmp_path_factory.mktemp("mask") / "m.safetensors"
    asked: list[str] = []

    def tensor(name: str) -> PackedTensor:
        asked.append(name)
        return mask.tensor(name, mask.shape(name))

    assert write_mask_file(path, outline_of(mask), tensor, force=False) == mask.num_selected()
    assert asked == sorted(mask)
    loaded = Mask.load(path)
    assert loaded == mask
    assert loaded.names == mask.names


def test_the_header_has_room_for_any_count(tmp_path: Path) -> None:
    """Counts are known last: the header of nothing selected is as long as that of everything."""
    lengths = set()
    for density in (0.0, 0.5, 1.1):
        path = tmp_path / f"{density}.safetensors"
        example_mask(density).save(path)
        lengths.add(path.read_bytes()[:8])
        assert Mask.load(path) == example_mask(density)
    assert len(lengths) == 1


def test_an_error_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    example_mask().save(path)
    before = path.read_bytes()

    def failing(name: str) -> PackedTensor:
        if name == "nothing":
            raise OSError("disk on fire")
        return example_mask().tensor(name, example_mask().shape(name))

    with pytest.raises(OSError, match="disk on fire"):
        write_mask_file(path, outline_of(example_mask()), failing, force=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputExistsError):
        write_mask_file(path, outline_of(example_mask()), failing, force=False)


def test_a_tensor_of_another_shape_is_a_bug(tmp_path: Path) -> None:
    outline = MaskHeader({"w": (3,)}, {}, {})
    wrong = PackedTensor.pack(np.ones(4, dtype=np.bool_))
    with pytest.raises(ValueError, match=r"w: \(4,\) is not \(3,\)"):
        write_mask_file(tmp_path / "m", outline, lambda _: wrong, force=False)
    assert not list(tmp_path.iterdir())


def test_a_missing_tensor_is_a_bug(tmp_path: Path) -> None:
    outline = MaskHeader({"v": (3,), "w": (3,)}, {}, {})
    with (
        pytest.raises(KeyError, match="'w'"),
        mask_writer(tmp_path / "m", outline, force=False) as writer,
    ):
        writer.add(PackedTensor.pack(np.ones(3, dtype=np.bool_)))
    assert not list(tmp_path.iterdir())
