"""Links that are signed, by the real ssh-keygen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import trimtab
from tests.deltas.building import content_of, write_folder
from tests.sync.test_follow import first_weights, next_weights
from trimtab.errors import DeltaError, SyncError

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen (OpenSSH)"
)


def new_key(path: Path) -> Path:
    command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path)
    subprocess.run(command, check=True)
    return path


def test_only_signed_links_are_followed(tmp_path: Path) -> None:
    key, other = new_key(tmp_path / "key"), new_key(tmp_path / "other")
    arrays = first_weights()
    folders = [write_folder(tmp_path / "v0", arrays)]
    for number in range(1, 6):
        arrays = next_weights(arrays, number)
        folders.append(write_folder(tmp_path / f"v{number}", arrays))
    place, out = tmp_path / "place", tmp_path / "out"
    follower = trimtab.Follower(
        place, trimtab.FolderHolder(out, folders[0]), name="f", signers=tmp_path / "key.pub"
    )
    with trimtab.Publisher(
        place, folders[0], signing_key=key, fold_every=2, anchor_every=4, keep=1
    ) as publisher:
        for number in range(1, 5):
            publisher.publish(folders[number])
            publisher.wait()
            follower.update()
            assert content_of(out / "current") == content_of(folders[number])
    # A stranger takes the run over, without a key, and with a key of their own.
    with trimtab.Publisher(place, folders[0]) as publisher:
        publisher.publish(folders[5])
    with pytest.raises(SyncError, match=r"000005-.* is not signed: publish with a signing key"):
        follower.update()
    signed = {path.name for path in place.glob("*.sig")}
    assert {path.name for path in place.glob("*.delta")} >= {name[:-4] for name in signed}
    with trimtab.Publisher(place, folders[0], signing_key=other) as publisher:
        publisher.publish(folders[1])
    with pytest.raises((SyncError, DeltaError), match=r"is not signed|not among the 1 key"):
        follower.update()
    assert content_of(out / "current") == content_of(folders[4])


def test_a_key_that_cannot_sign(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "v0", first_weights())
    tuned = write_folder(tmp_path / "v1", next_weights(first_weights(), 1))
    trimtab.make_delta(base, tuned, tmp_path / "d.delta")
    with pytest.raises(DeltaError, match=r"d.delta cannot be signed with .*missing: \S+"):
        trimtab.sign_delta(tmp_path / "d.delta", tmp_path / "missing")
    key = new_key(tmp_path / "key")
    signature = trimtab.sign_delta(tmp_path / "d.delta", key)
    assert signature == tmp_path / "d.delta.sig"
    assert "SHA256:" in trimtab.verify_signature(tmp_path / "d.delta", tmp_path / "key.pub")
