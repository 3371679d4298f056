"""Builds small wheels, honest or not, and a source folder for pip to find them in."""

import base64
import hashlib
import io
import zipfile
from pathlib import Path


def build_wheel(
    folder: Path,
    name: str,
    files: dict[str, bytes],
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    record: dict[str, str] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A wheel holding `files`; `record` overrides hashes in RECORD (None as value drops the line)."""
    base = f"{name.replace('-', '_')}-{version}"
    info = f"{base}.dist-info"
    headers = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: Test-1.0\n"]
    headers += [f"Requires-Dist: {line}\n" for line in requires]
    members = {
        **files,
        f"{info}/METADATA": "".join(headers).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = {member: f"sha256={_hash(data)}" for member, data in members.items()} | (record or {})
    rows = [f"{member},{value},{len(members.get(member, b''))}" for member, value in lines.items() if value]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{base}-py3-none-any.whl"
    path.write_bytes(zip_bytes(members, compression))
    return path


def zip_bytes(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with those members, under exactly those names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data, compression)
    return buffer.getvalue()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
