"""Signatures of delta files, in the format of OpenSSH: SSHSIG, as `ssh-keygen -Y sign` writes it.

The signature is over the whole file. It is checked by the library `sshsig`, and only after the key
in it was found among those that the reader trusts.
"""

from __future__ import annotations

import binascii
import os
import subprocess
from collections.abc import Mapping
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path

from trimtab.deltas.file import FORMAT, DeltaFile, located
from trimtab.errors import CheckpointError, DeltaError
from trimtab.escaping import escaped
from trimtab.extras import require
from trimtab.inputs import AnyPath, read_bytes
from trimtab.words import plural

SUFFIX = ".sig"
"""`ssh-keygen` appends it to the name of the file that it signs."""

NAMESPACE = FORMAT
"""What a signature is for: one that was made for another purpose does not count."""

MOST_SECONDS = 60
"""That ssh-keygen may take: a key in hardware waits for a touch."""

HASHES = (b"sha512", b"sha256")

MAX_BYTES = 1 << 20
"""Longest signature, and longest list of signers."""

KEY_TYPES = ("ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")
"""How a line begins that is a public key without names."""

INSTALL = "pip install 'trimtab[sign]'"


def verify_signature(delta: AnyPath, signers: AnyPath, signature: AnyPath | None = None) -> str:
    """Check that a delta file is signed by a key that is trusted.

    Args:
        delta: The delta file, or a hub id.
        signers: File with public keys: lines of `ssh-keygen`'s public keys (`ssh-ed25519 AAAA...`),
            or of its allowed_signers (`alice@example.com ssh-ed25519 AAAA...`). Every key in it is
            trusted. Ed25519 and RSA.
        signature: Written by `ssh-keygen -Y sign -n trimtab.delta -f KEY run.delta`; by default
            `run.delta.sig` beside the delta, or `model.delta.sig` in its repository.

    Returns:
        Who signed: the names of the key in `signers`, if it has any, and its fingerprint.

    Raises:
        DeltaError: The delta cannot be read, or has no signature of such a key.
        MissingExtraError: sshsig is not installed.
    """
    with DeltaFile(delta) as opened:
        return check_signature(opened, delta, signers, signature)


def sign_delta(delta: AnyPath, key: AnyPath) -> Path:
    """Sign a delta file with `ssh-keygen -Y sign`.

    Args:
        delta: The delta file.
        key: A private key of OpenSSH, or the public one if `ssh-agent` has the private one.

    Returns:
        The signature, beside the delta; one that is there is replaced.

    Raises:
        DeltaError: ssh-keygen is not there, or cannot sign with this key: one that needs a
            passphrase has to be in `ssh-agent`.
    """
    signature = Path(f"{os.fspath(delta)}{SUFFIX}")
    signature.unlink(missing_ok=True)
    command = ("ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", key, delta)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MOST_SECONDS
        )
        problem = done.stderr.strip().partition("\n")[0] if done.returncode else ""
    except FileNotFoundError:
        problem = "there is no ssh-keygen: install OpenSSH"
    except subprocess.TimeoutExpired:
        problem = f"ssh-keygen did not end in {MOST_SECONDS} s"
    if not signature.exists():
        raise DeltaError(f"{os.fspath(delta)} cannot be signed with {os.fspath(key)}: {problem}")
    return signature


def check_signature(
    delta: DeltaFile, ref: AnyPath, signers: AnyPath, signature: AnyPath | None = None
) -> str:
    """`verify_signature` of an open delta, which is what will be read of it afterwards.

    Args:
        delta: The delta.
        ref: The path or hub id that it was opened by.
        signers: As for `verify_signature`; likewise the result and the errors.
        signature: As for `verify_signature`.
    """
    sshsig = require("sshsig.sshsig", INSTALL)
    trusted = _trusted(signers)
    where, armored = _read_signature(ref, signature)
    try:
        described = sshsig.SshsigSignature.from_armored(armored)
    except (ValueError, NotImplementedError) as error:
        raise DeltaError(
            f"{where} is no signature of ssh-keygen ({_reason(error)}): get it again"
        ) from None
    if described.namespace != NAMESPACE.encode():
        found = escaped(described.namespace.decode("ascii", "replace")[:40])
        raise DeltaError(
            f"{where} is a signature for '{found}', expected '{NAMESPACE}': sign the delta with "
            f"ssh-keygen -Y sign -n {NAMESPACE}"
        )
    if described.hash_algo not in HASHES:
        raise DeltaError(f"{where} is made with another hash than SHA-512 and SHA-256")
    if described.public_key not in trusted:
        raise DeltaError(
            f"{where} is made with a key that is not among the {plural(len(trusted), 'key')} of "
            f"{os.fspath(signers)}: ask whoever sent the delta, or add the key if you trust it"
        )
    try:
        with delta.open() as file:
            key = sshsig.check_signature(file, armored, NAMESPACE)
    except NotImplementedError as error:
        raise DeltaError(f"{where}: {_reason(error)} Expected Ed25519 or RSA") from None
    except (sshsig.InvalidSignature, ValueError, AssertionError):
        raise DeltaError(
            f"{where} is not a signature of {delta.path}: one of them is damaged, forged or of "
            "another delta"
        ) from None
    return " ".join(filter(None, (trusted[described.public_key], key.sha256_str())))


def _read_signature(ref: AnyPath, signature: AnyPath | None) -> tuple[str, bytes]:
    """Where a signature is, and its bytes."""
    try:
        path = located(ref, SUFFIX) if signature is None else signature
        return os.fspath(path), read_bytes(path, DeltaError, limit=MAX_BYTES)
    except (CheckpointError, DeltaError) as error:
        raise DeltaError(f"{os.fspath(ref)} has no signature that can be read: {error}") from None


def _trusted(signers: AnyPath) -> Mapping[bytes, str]:
    """Encoded public key -> names, of the keys of a file whose signatures of deltas count."""
    where = os.fspath(signers)
    reader = require("sshsig.allowed_signers", INSTALL)
    raw = read_bytes(signers, DeltaError, limit=MAX_BYTES)
    try:
        lines = [line.strip() for line in raw.decode("ascii").splitlines()]
        lines = [f"* {line}" if line.startswith(KEY_TYPES) else line for line in lines]
        allowed = reader.load_allowed_signers_file(StringIO("\n".join(lines)))
        keys = [(signer, _decoded(signer.key_type, signer.base64_key)) for signer in allowed]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise DeltaError(
            f"{where}: expected lines of public keys, or of allowed_signers of OpenSSH "
            f"({_reason(error)})"
        ) from None
    trusted = {}
    for signer, key in keys:
        options = signer.options or {}
        if odd := sorted(options.keys() - {"namespaces"}):
            raise DeltaError(
                f"{where}: the option {odd[0]} of a signer is not supported: list keys that are "
                "valid now, without it"
            )
        if _matches(options.get("namespaces", "*")):
            trusted[key] = signer.principals if signer.principals != "*" else ""
    if not trusted:
        raise DeltaError(f"{where}: no key in it is for signatures of {NAMESPACE}")
    return trusted


def _decoded(kind: str, base64_key: str) -> bytes:
    """A public key as signatures contain it.

    Raises:
        ValueError: It is no key of this kind.
    """
    key = binascii.a2b_base64(base64_key, strict_mode=True)
    if not key.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise ValueError(f"a line of {kind} has no key of that type")
    return key


def _matches(patterns: str) -> bool:
    """Whether the namespace is one that a list of patterns allows."""
    parts = patterns.split(",")
    refused = [part[1:] for part in parts if part.startswith("!")]
    return any(fnmatchcase(NAMESPACE, part) for part in parts) and not any(
        fnmatchcase(NAMESPACE, part) for part in refused
    )


def _reason(error: Exception) -> str:
    return escaped(str(error).partition("\n")[0][:80]) or type(error).__name__
