"""A delta is applied if a trusted key signed it, and refused in one sentence otherwise."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sshsig.sshsig import SshsigSignature, ssh_dearmor_sshsig, ssh_enarmor_sshsig

import trimtab
from tests.deltas.building import content_of, moved, random_bits, write_folder
from tests.deltas.signing import Signer
from trimtab.cli import main
from trimtab.deltas.file import DeltaFile
from trimtab.errors import DeltaError, MissingExtraError, OutputExistsError, SettingsError

SIGNED = Path(__file__).parent / "signed"
"""A delta with its signatures, made by ssh-keygen of OpenSSH 9.2."""

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")


class Sent(NamedTuple):
    """A signed delta, as its receiver has it."""

    base: Path
    tuned: Path
    delta: Path
    signers: Path
    signer: Signer

    @property
    def signature(self) -> Path:
        return Path(f"{self.delta}.sig")


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    weight = random_bits("BF16", (20, 30), 0)
    base = write_folder(tmp_path / "base", {"w": ("BF16", weight)})
    tuned = write_folder(tmp_path / "tuned", {"w": ("BF16", moved(weight, 0.1, 1))})
    signer = Signer.new()
    made = Sent(base, tuned, tmp_path / "run.delta", tmp_path / "signers", signer)
    trimtab.make_delta(base, tuned, made.delta, sha256=True)
    made.signature.write_text(signer.sign(made.delta.read_bytes()))
    made.signers.write_text(f"# who may sign\nalice@example.com {signer.line}\n\n")
    return made


def refused(sent: Sent, match: str, folder: Path, **options: Any) -> None:
    """Every way of applying refuses, and changes nothing."""
    before = content_of(sent.base)
    for apply in (
        lambda: trimtab.apply_delta(
            sent.base, sent.delta, folder / "out", signers=sent.signers, **options
        ),
        lambda: trimtab.apply_in_place(sent.base, sent.delta, signers=sent.signers, **options),
        lambda: trimtab.verify_delta(sent.base, sent.delta, signers=sent.signers, **options),
        lambda: trimtab.verify_signature(sent.delta, sent.signers, **options),
    ):
        with pytest.raises(DeltaError, match=match) as caught:
            apply()
        assert "\n" not in str(caught.value)
    assert content_of(sent.base) == before and not (folder / "out").exists()


def test_signed_deltas_are_applied(sent: Sent, tmp_path: Path) -> None:
    for path in ("a", "b"):
        trimtab.apply_delta(sent.base, sent.delta, tmp_path / path, signers=sent.signers)
        assert content_of(tmp_path / path) == content_of(sent.tuned)
        sent.signers.write_text(sent.signer.line)  # the second time: a public key
    who = trimtab.verify_signature(sent.delta, sent.signers)
    assert who.startswith("SHA256:")
    sent.signers.write_text(f'"a@x,b@x" namespaces="git,trimtab.*" {sent.signer.line} a comment')
    assert trimtab.verify_signature(sent.delta, sent.signers) == f"a@x,b@x {who}"
    elsewhere = sent.signature.rename(tmp_path / "elsewhere")
    with pytest.raises(DeltaError, match=r"has no signature .*run\.delta\.sig: no such file"):
        trimtab.verify_signature(sent.delta, sent.signers)
    trimtab.apply_in_place(sent.base, sent.delta, signers=sent.signers, signature=elsewhere)
    assert content_of(sent.base) == content_of(sent.tuned)


def test_forged_and_swapped_signatures(sent: Sent, tmp_path: Path) -> None:
    data, good = sent.delta.read_bytes(), sent.signature.read_text()
    stranger = Signer.new()
    ours = SshsigSignature.from_armored(good)
    theirs = SshsigSignature.from_armored(stranger.sign(data))
    theirs.public_key = ours.public_key  # a trusted name on a stranger's signature
    cases = {
        stranger.sign(data): r"a key that is not among the 1 key of .*signers",
        theirs.to_armored(): "is not a signature of",
        sent.signer.sign(data + b"x"): "one of them is damaged, forged or of another delta",
        sent.signer.sign(data, namespace="file"): "is a signature for 'file', expected 'trimtab",
        sent.signer.sign(data, namespace="\r\n\x1b[31m"): r"for '\\u000d\\u000a\\u001b\[31m'",
        sent.signer.sign(data, hash="sha1"): "another hash than SHA-512",
        sent.signer.sign(data, hash="md5"): "another hash",
        "": "is no signature of ssh-keygen",
        good[: len(good) // 2]: "signature",
        good.replace("\n", "\nZ", 1): "is no signature of ssh-keygen",
        ssh_enarmor_sshsig(b"SSHSIG\0\0\0\2" + bytes(ours)[10:]): "no signature .*version 2",
    }
    for text, match in cases.items():
        sent.signature.write_text(text)
        refused(sent, match, tmp_path)
    sent.signature.write_bytes(b"\xff" * 300)
    refused(sent, "is no signature of ssh-keygen", tmp_path)


def test_every_cut_and_every_flipped_bit_of_a_signature(sent: Sent) -> None:
    raw = ssh_dearmor_sshsig(sent.signature.read_text())
    # Two lengths at its end may claim more than there is: sshsig reads what is there.
    lengths = {place for end in (64, 83) for place in range(len(raw) - end - 4, len(raw) - end)}
    damaged = [raw[:end] for end in range(len(raw))]
    for place in sorted({*range(len(raw))} - lengths):
        for bit in (1, 128):
            damaged.append(raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :])
    for content in damaged:
        sent.signature.write_text(ssh_enarmor_sshsig(content))
        with pytest.raises(DeltaError, match=r"run\.delta\.sig is (no|not|a|made) "):
            trimtab.verify_signature(sent.delta, sent.signers)


def test_damaged_and_swapped_deltas(sent: Sent, tmp_path: Path) -> None:
    good = sent.delta.read_bytes()
    for place in (*range(0, len(good), 97), len(good) - 1):
        sent.delta.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DeltaError):
            trimtab.apply_delta(sent.base, sent.delta, tmp_path / "out", signers=sent.signers)
    trimtab.make_delta(sent.tuned, sent.base, sent.delta, force=True)
    refused(sent, "of another delta", tmp_path)


def test_who_is_trusted(sent: Sent, tmp_path: Path) -> None:
    line = sent.signer.line
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    other = curve.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    for text, match in {
        "": "no key in it is for signatures of trimtab.delta",
        f'a namespaces="git" {line}': "no key in it is for signatures",
        f'a namespaces="*,!trimtab.delta" {line}': "no key in it is for signatures",
        f'a valid-before="20200101" {line}': "option valid-before .* is not supported",
        f"a cert-authority {line}": "option cert-authority .* is not supported",
        "what is this?": "expected lines of public keys, or of allowed_signers",
        "a": "expected lines of public keys",
        f"a ssh-ed25519 {'A' * 41}": "expected lines of public keys",
        "é": "expected lines of public keys",
        other: "a key that is not among the 1 key",
    }.items():
        sent.signers.write_text(text)
        refused(sent, match, tmp_path)
    sent.signers.unlink()
    refused(sent, "no such file", tmp_path)


def test_a_chain_needs_a_signature_for_each(sent: Sent, tmp_path: Path) -> None:
    second = tmp_path / "second.delta"
    weight = random_bits("BF16", (20, 30), 5)
    later = write_folder(tmp_path / "later", {"w": ("BF16", weight)})
    trimtab.make_delta(sent.tuned, later, second, after=sent.delta)
    both = [second, sent.delta]
    with pytest.raises(DeltaError, match=r"second\.delta has no signature"):
        trimtab.apply_delta(sent.base, both, tmp_path / "out", signers=sent.signers)
    Path(f"{second}.sig").write_text(sent.signer.sign(second.read_bytes()))
    trimtab.apply_delta(sent.base, both, tmp_path / "out", signers=sent.signers)
    with pytest.raises(SettingsError, match="for 2 deltas: expected one beside each"):
        trimtab.verify_delta(sent.base, both, signers=sent.signers, signature=sent.signature)
    with pytest.raises(SettingsError, match="without signers"):
        trimtab.verify_delta(sent.base, sent.delta, signature=sent.signature)


def test_the_sha256_of_every_file(sent: Sent, tmp_path: Path) -> None:
    with DeltaFile(sent.delta) as opened:
        manifest = opened.manifest
        for file in manifest.files:
            content = (sent.tuned / file.path).read_bytes()
            assert file.sha256 == hashlib.sha256(content).hexdigest()
        # A base and a delta of equal xxh3-128 and other bytes: here it is the SHA-256 that differs.
        data = manifest.to_dict()
        data["files"][0]["sha256"] = "0" * 64
        opened.copy(tmp_path / "forged.delta", trimtab.Manifest.from_dict(data))
        data["files"][0]["sha256"] = "0" * 63
        with pytest.raises(trimtab.TrimtabError, match="expected 64 hexadecimal digits"):
            trimtab.Manifest.from_dict(data)
    checks: list[Callable[[], object]] = [
        lambda: trimtab.verify_delta(sent.base, tmp_path / "forged.delta"),
        lambda: trimtab.apply_delta(sent.base, tmp_path / "forged.delta", tmp_path / "out"),
        lambda: trimtab.apply_in_place(sent.base, tmp_path / "forged.delta"),
    ]
    for check in checks:
        with pytest.raises(DeltaError, match=r"model\.safetensors has SHA-256 .*, expected 0000"):
            check()
    assert not (tmp_path / "out").exists()
    compacted = trimtab.compact_deltas(sent.base, sent.delta, tmp_path / "c.delta", sha256=True)
    assert [f.sha256 for f in compacted.files] == [f.sha256 for f in manifest.files]
    without = trimtab.make_delta(sent.base, sent.tuned, tmp_path / "without.delta")
    assert all("sha256" not in file for file in without.to_dict()["files"])


def test_signatures_of_ssh_keygen(capsys: pytest.CaptureFixture[str]) -> None:
    """Stored ones, so that they are checked without ssh-keygen too."""

    def verify(*options: str | Path) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as end:
            main(["delta", "verify", str(SIGNED / "run.delta"), *map(str, options)])
        printed = capsys.readouterr()
        return end.value.code, printed.out + printed.err

    code, text = verify("--signers", SIGNED / "ed25519.pub")
    assert code == 0 and "run.delta is signed by SHA256:ZVmLZ/27" in text
    rsa = ("--signers", SIGNED / "rsa.pub")
    code, text = verify(*rsa, "--signature", SIGNED / "rsa.sig")
    assert code == 0 and "is signed by SHA256:mpFSFC5Z" in text
    code, text = verify(*rsa)
    assert code == 1 and text.startswith("trimtab: ") and text.count("\n") == 1
    assert verify("--signature", SIGNED / "rsa.sig")[0] == 2


@needs_ssh
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_as_ssh_keygen_does(sent: Sent, tmp_path: Path, kind: str) -> None:
    def ssh_keygen(*arguments: str, data: bytes = b"") -> int:
        done = subprocess.run(["ssh-keygen", *arguments], input=data, capture_output=True)
        return done.returncode

    key, data = tmp_path / "key", sent.delta.read_bytes()
    assert ssh_keygen("-q", "-t", kind, "-N", "", "-f", str(key)) == 0
    sent.signature.unlink()
    assert ssh_keygen("-Y", "sign", "-f", str(key), "-n", "trimtab.delta", str(sent.delta)) == 0
    sent.signers.write_text(Path(f"{key}.pub").read_text())
    if kind == "ecdsa":
        refused(sent, "not supported: ecdsa-sha2-nistp256. Expected Ed25519 or RSA", tmp_path)
        return
    assert trimtab.verify_signature(sent.delta, sent.signers).startswith("SHA256:")
    # And the other way round: what the tests sign is what ssh-keygen accepts.
    sent.signers.write_text(f"a@x {sent.signer.line}\n")
    sent.signature.write_text(sent.signer.sign(data))
    verify = ("-Y", "verify", "-f", str(sent.signers), "-I", "a@x", "-n", "trimtab.delta")
    assert ssh_keygen(*verify, "-s", str(sent.signature), data=data) == 0
    assert ssh_keygen(*verify, "-s", str(sent.signature), data=data + b"x") != 0


def test_without_the_library(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sshsig.sshsig", None)
    with pytest.raises(MissingExtraError, match=r"run `pip install 'trimtab\[sign\]'`"):
        trimtab.verify_signature(sent.delta, sent.signers)
    with pytest.raises(OutputExistsError):
        trimtab.make_delta(sent.base, sent.tuned, sent.delta)
