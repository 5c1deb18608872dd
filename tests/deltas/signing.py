"""Signatures as ssh-keygen makes them, without ssh-keygen."""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sshsig.binary_io import SshWriter
from sshsig.sshsig import SshsigWrapper, ssh_enarmor_sshsig


def packed(*parts: bytes) -> bytes:
    """Strings in the encoding of SSH."""
    writer = SshWriter(io.BytesIO())
    for part in parts:
        writer.write_string(part)
    return writer.output_fh.getvalue()


class Signer(NamedTuple):
    """A key, and what ssh-keygen would do with it."""

    key: ed25519.Ed25519PrivateKey

    @classmethod
    def new(cls) -> Signer:
        return cls(ed25519.Ed25519PrivateKey.generate())

    @property
    def line(self) -> str:
        public = self.key.public_key()
        return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def sign(self, data: bytes, namespace: str = "trimtab.delta", hash: str = "sha512") -> str:
        public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        digest = hashlib.new(hash, data).digest()
        message = SshsigWrapper(
            namespace=namespace.encode(), hash_algo=hash.encode(), hash=digest
        ).to_bytes()
        blob = packed(
            packed(b"ssh-ed25519", public),
            namespace.encode(),
            b"",
            hash.encode(),
            packed(b"ssh-ed25519", self.key.sign(message)),
        )
        return ssh_enarmor_sshsig(b"SSHSIG\0\0\0\1" + blob)
