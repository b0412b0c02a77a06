"""New captions of pictures by another model, any image-text-to-text model of transformers, as doubutsu's by moondream2.

What is done is kept beside the file to be written, as FILE.partial, so that the same command goes on after a stop.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.lm.precision import DTYPES, choose_precision, quantization, refuse_quantized
from periscope.atomic import json_line, lock_folder, replace_bytes, unlock_folder
from periscope.bars import progress_bar
from periscope.checked import json_objects
from periscope.errors import MediaError, PrecomputeError, RunError, first_line
from periscope.evaluation.captioning import caption_line, write_lines
from periscope.precompute.decoding import Source, decoded
from periscope.precompute.media import decode_image
from periscope.precompute.remote import collected
from periscope.precompute.sources import Medium
from periscope.quiet import quiet_transformers
from periscope.text import printable

PROMPT = "Describe the image."
UNFINISHED = ".partial"


class Captioner:
    """A vision-language model of transformers that answers one prompt about pictures. No code of its own is run.

    prompt: what it is asked; with the chat template of its processor, where that has one. Raises RunError for a model
    that can't be loaded, AdapterError for a precision that this machine doesn't have.
    """

    def __init__(self, name: str, prompt: str, decoding: Decoding, device: str, precision: str = "auto"):
        self.name, self.decoding, self.device = name, decoding, torch.device(device)
        if precision in ("8bit", "4bit"):
            refuse_quantized(f"--precision {precision}", self.device)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
            held, _ = choose_precision("auto" if precision in ("8bit", "4bit") else precision, self.device, stored)
            self.dtype = DTYPES[held]
            packed = quantization(precision, self.dtype) if precision in ("8bit", "4bit") else {}
            with quiet_transformers():
                self.processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
                model: Any = AutoModelForImageTextToText.from_pretrained(
                    name,
                    dtype=self.dtype,
                    device_map={"": device},
                    use_safetensors=True,
                    **packed,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise RunError(
                f"--with {name} isn't an image-text-to-text model that can be loaded: {first_line(error)}"
            ) from None
        self.model = model.eval()
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.padding_side = "left"
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.text = self._text(prompt)

    def _text(self, prompt: str) -> str:
        if not getattr(self.processor, "chat_template", None):
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    @torch.no_grad()
    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption of each picture, of mode RGB."""
        # A list for each text: some processors take a flat list as several pictures of one text.
        nested = [[picture] for picture in pictures]
        inputs = self.processor(images=nested, text=[self.text] * len(pictures), padding=True, return_tensors="pt")
        inputs = inputs.to(self.device, self.dtype)
        how = {"do_sample": False, **self.decoding.arguments()}
        ids = cast(Any, self.model).generate(**inputs, max_new_tokens=self.decoding.max_new_tokens, **how)
        asked = inputs["input_ids"]
        if ids.shape[1] >= asked.shape[1] and torch.equal(ids[:, : asked.shape[1]], asked):
            ids = ids[:, asked.shape[1] :]  # decoders repeat the prompt, encoder-decoders don't
        return [words.strip() for words in self.processor.batch_decode(ids, skip_special_tokens=True)]


def recaption(captioner: Captioner, data: Path, out: Path, batch: int, about: dict[str, object]) -> tuple[int, int]:
    """Write a caption of each picture below `data` to `out`, a texts file that must not exist; the number of captions,
    and of these how many were made before a stop.

    about: what the captions depend on, which must be the same to go on. Pictures that can't be read are counted and
    left out. Raises RunError for captions begun otherwise, PrecomputeError where no picture can be read.
    """
    unfinished = out.with_name(out.name + UNFINISHED)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(out)
    try:
        done = _done(unfinished, about)
        before, bad = len(done), list[str]()
        with collected(data) as collection, open(unfinished, "ab") as file:
            media = [each for each in collection.media.values() if each.modality == "image"]
            left = [medium for medium in media if medium.origin not in done]
            for start in progress_bar(range(0, len(left), batch), desc="captioning", unit=" batches"):
                pictures = dict(_pictures(left[start : start + batch], bad))
                words = captioner.captions(list(pictures.values())) if pictures else []
                lines = {origin: caption_line(origin, said) for origin, said in zip(pictures, words, strict=True)}
                file.write(b"".join(map(json_line, lines.values())))
                file.flush()
                done |= lines
        lines_in_order = [done[medium.origin] for medium in media if medium.origin in done]
        if not lines_in_order:
            unfinished.unlink()
            raise PrecomputeError(f"{data} holds no image that can be read{f' ({bad[0]})' if bad else ''}")
        write_lines(lines_in_order, out)
        unfinished.unlink()
    finally:
        unlock_folder(handle)
    if bad:
        print(f"{len(bad)} media can't be read and have no caption ({printable(bad[0])})")
    return len(lines_in_order), before


def _locked(out: Path) -> Any:
    try:
        return lock_folder(out.parent)
    except BlockingIOError:
        raise RunError(
            f"another process writes captions in {out.parent}; wait for it, or name another folder"
        ) from None


def _done(unfinished: Path, about: dict[str, object]) -> dict[str, dict]:
    """The lines made so far, by medium; a half line at the end is dropped. Begins the file where there is none."""
    rows = json_objects(unfinished.read_bytes()) if unfinished.is_file() else []
    if rows and rows[0] != about:
        changed = next(name for name in {**rows[0], **about} if rows[0].get(name) != about.get(name))
        raise RunError(
            f"{unfinished} was begun with {changed} {json.dumps(rows[0].get(changed))}, not "
            f"{json.dumps(about.get(changed))}; go on with the same, delete it, or name another --out"
        )
    lines = [row for row in rows[1:] if isinstance(row.get("media"), list) and row["media"]]
    replace_bytes(unfinished, b"".join(map(json_line, [about, *lines])))
    return {str(row["media"][0]): row for row in lines}


def _pictures(media: Sequence[Medium], bad: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Each picture by its origin, decoded in a worker within limits; why others can't be read goes to `bad`."""
    for medium in media:
        try:
            with decoded(Source(decode_image, data=medium.read())) as picture:
                yield medium.origin, picture.copy()
        except MediaError as error:
            bad.append(f"{medium.origin}: {error}")
