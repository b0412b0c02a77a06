"""Ten rows in each system's own data layout: the token ids and targets that its official code makes of them.

golden/recipe_tokens.json holds what the functions named below gave, run with this project's tiny tokenizers (those of
Llama, GPT-2, GPT-NeoX and OPT are of the classes that the systems use) and transformers 5.24.0:

- LLaVA c121f04: `preprocess_multimodal`, then `preprocess_plain` for stage 1 and `preprocess_v1` for stage 2
- Cobra 4b81082: `AlignDataset`, and for questions `FinetuneDataset` with `MambaPromptBuilder`; `add_turn` of
  `ZephyrChatPromptBuilder` (97f91e1) for its own language model
- vl_mamba c788f5f: `VLMambaConversationProcessor` for captions and questions; "instruction first" as `PretrainDataset`
  puts the picture behind the instruction
- CLIP_prefix_caption 1ad805a: `parse_coco.py`, and the tokens of `ClipCocoDataset`, where its loss passes over token 0
- MAPL 4027edd: the tokens of a caption, all of which its loss reads
- limber ed3e942: `ImgCptDataset`, a batch of `ImageCaptionDataCollator` with the ten captions, and `build_labels`
- eP-ALM 9ecfeb9: the lines of `accelerate_training/caption.py` that make the text and its targets, which are those of
  `audio_caption.py` and `video_caption.py`

Where a picture stands there is null, one for all its places. Each target mask is 1 where the loss reads a token.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from periscope.adapters.projectors import FeatureShape, build_projector
from periscope.adapters.prompting.prompt import Prompt
from periscope.precompute.pipeline.writer import text_lines
from periscope.precompute.sources import collect
from periscope.recipes import load_recipe, recipe_names
from periscope.shards.texts import Texts
from periscope.shards.write import make_key
from periscope.training.config import config_from
from periscope.training.data.dataset import TextFeatureDataset, question_of
from periscope.training.models.modality_model import make_template

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "recipe_tokens.json").read_text())
ROWS, IDS = GOLDEN["rows"], GOLDEN["ids"]
NEOX = lambda: tiny.byte_level(pad=False, eos="<|endoftext|>")  # noqa: E731
GPT2 = lambda: tiny.byte_level(pad=False)  # noqa: E731
OPT = lambda: tiny.byte_level(bos=True)  # noqa: E731


def as_gpt2() -> PreTrainedTokenizerFast:
    """Whose first token is "!" and whose only special one the last, as of GPT-2."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        tiny.WORDS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=letters, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


BARE = {"delimiters": ["", ""], "row_separator": ""}  # what stands around the picture's tokens is tested elsewhere


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def conversations(name: str, rows: list[dict], folder: Path) -> None:
    for row in rows:
        if "image" in row:
            picture(folder / row["image"])
    (folder / name).write_text(json.dumps(rows))


def pretrain(folder: Path) -> None:
    """https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain; LLaVA-CC3M-Pretrain-595K has the same form."""
    conversations("blip_laion_cc_sbu_558k.json", ROWS["pretrain"], folder)


def sentences(folder: Path) -> None:
    """The same with captions as vl_mamba's `format_text` leaves them: one capital, a full stop."""
    conversations("blip_laion_cc_sbu_558k.json", ROWS["sentences"], folder)


def instruct(folder: Path) -> None:
    """llava_v1_5_mix665k.json, with texts without a picture among the conversations."""
    conversations("llava_v1_5_mix665k.json", ROWS["instruct"], folder)


def karpathy(folder: Path) -> None:
    """https://cs.stanford.edu/people/karpathy/deepimagesent/."""
    images = []
    for n, words in enumerate(ROWS["captions"]):
        name = f"COCO_train2014_{n:012d}.jpg"
        picture(folder / "train2014" / name)
        sentence = {"raw": words, "tokens": words.split(), "imgid": n, "sentid": n}
        images.append({"filepath": "train2014", "filename": name, "imgid": n, "cocoid": n, "split": "train",
                       "sentids": [n], "sentences": [sentence]})  # fmt: skip
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def train_caption(folder: Path) -> None:
    """https://github.com/rmokady/CLIP_prefix_caption, data/coco; the pictures are those that its code opens."""
    for name in ROWS["train_caption pictures"]:
        picture(folder / name)
    (folder / "annotations").mkdir()
    (folder / "annotations/train_caption.json").write_text(json.dumps(ROWS["train_caption"]))


def image_data(folder: Path) -> None:
    """https://github.com/jmerullo/limber, `train_dataset_dir`; the pictures are those that its code opens."""
    for name in ROWS["image_data pictures"]:
        picture(folder / name)
    for name, row in ROWS["image_data"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(row))


def listed(kind: str, end: str) -> Callable[[Path], None]:
    """A function that writes train.json as eP-ALM's `MSRVTTCaptionFineTuneDataset` and its twin for sounds read it: a
    list of media with a caption, or a list of captions.
    """

    def write(folder: Path) -> None:
        rows = [{kind: f"{n}{end}", "caption": [words] if n % 2 else words} for n, words in enumerate(ROWS["captions"])]
        for row in rows:
            (folder / str(row[kind])).touch()
        (folder / "train.json").write_text(json.dumps(rows))

    return write


def vqav2(folder: Path) -> None:
    """https://visualqa.org/download.html."""
    questions, annotations = [], []
    for n, (asked, answer) in enumerate(ROWS["questions"]):
        picture(folder / "train2014" / f"COCO_train2014_{n:012d}.jpg")
        questions.append({"image_id": n, "question": asked, "question_id": n})
        answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
        annotations.append({"image_id": n, "question_id": n, "question_type": "what", "answer_type": "other",
                            "multiple_choice_answer": answer, "answers": answers})  # fmt: skip
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    file = folder / "v2_OpenEnded_mscoco_train2014_questions.json"
    file.write_text(json.dumps(head | {"task_type": "Open-Ended", "questions": questions}))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps(head | {"annotations": annotations}))


def texts_of(name: str, tokenizer, data: Path, **changes):
    """The prompt of a recipe, and the texts of a data folder as it reads them."""
    config = config_from({**load_recipe(name).train, **changes}, name)
    shape, adapter = FeatureShape("patches", 4, 8, (2, 2)), SimpleNamespace(tokens=4, spec="of four tokens")
    template = make_template(config.prompt, shape, adapter, SimpleNamespace(tokenizer=tokenizer))
    found = collect(data)
    lines, lost = text_lines(found.words, {}, {make_key(origin): "" for origin in found.media})
    assert not lost and not found.problems
    file = data / "lines"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = Texts(file, {})
    texts.find({make_key(origin) for origin in found.media}, frozenset())
    return Prompt(tokenizer, template), texts.with_captions(template.captions_read)


def tokens(prompt: Prompt, text) -> list[list]:
    """[ids with None for a picture, 1 for each target]."""
    dataset = SimpleNamespace(prompt=prompt, soft_tokens=0, key_prefix="", modality="")
    ids, targets = [], []
    for segment in TextFeatureDataset.segments(dataset, text):
        part = [None] if segment.slot else list(segment.ids)
        ids += part
        targets += [int(segment.target)] * len(part)
    return [ids, targets]


EXACT = {  # recipe: the golden rows' name, its layout, its tokenizer, what is tested elsewhere or differs by choice
    "llava-1.5": ("llava-1.5", pretrain, tiny.sentencepiece_like, {}),
    "llava-1.5-tune": ("llava-1.5-tune", instruct, tiny.sentencepiece_like, {}),
    "cobra": ("cobra", pretrain, NEOX, {}),
    "cobra-ldpv2": ("cobra", pretrain, NEOX, {}),
    "cobra, questions": ("cobra questions", instruct, NEOX, {"caption_requests": "question"}),
    "cobra-tune": ("cobra questions", instruct, NEOX, {}),
    "cobra-tune, zephyr": ("cobra zephyr", instruct, NEOX, {"question": "<|user|>\n{}<|endoftext|>\n<|assistant|>\n"}),
    "mamba-vl": ("mamba-vl", sentences, NEOX, BARE),
    "pythia-vl": ("mamba-vl", sentences, NEOX, BARE),
    "mamba-vl-tune": ("mamba-vl questions", vqav2, NEOX, BARE),
    "pythia-vl-tune": ("mamba-vl questions", vqav2, NEOX, BARE),
    "mamba-vl, questions": ("mamba-vl questions", vqav2, NEOX, BARE),
    "mamba-vl, instruction first": (
        *("mamba-vl instruction first", vqav2, NEOX),
        {
            **BARE,
            "question": "Answer the question using a single word or phrase.<image>\nQuestion: {}\nAnswer: ",
        },
    ),
}


@pytest.mark.parametrize("recipe", EXACT)
def test_ids_and_targets_are_those_of_the_official_code(recipe: str, tmp_path: Path) -> None:
    name, write, make, changes = EXACT[recipe]
    write(tmp_path)
    prompt, texts = texts_of(recipe.partition(",")[0], make(), tmp_path, **changes)
    assert len(texts) == len(IDS[name]) == 10
    for text, want in zip(texts, IDS[name], strict=True):
        assert tokens(prompt, text) == want, text


def test_mapl_trains_no_end_of_a_caption(tmp_path: Path) -> None:
    karpathy(tmp_path)
    tokenizer = GPT2()
    prompt, texts = texts_of("mapl", tokenizer, tmp_path)
    assert "end" in load_recipe("mapl").about["differs"]["prompt"]
    for text, (ids, targets) in zip(texts, IDS["mapl"], strict=True):
        assert tokens(prompt, text) == [[*ids, tokenizer.eos_token_id], [*targets, 1]]


@pytest.mark.parametrize("adapter", ["clipcap10", "clipcap-transformer40"])
def test_clipcap_reads_its_list_of_captions(adapter: str, tmp_path: Path) -> None:
    """What differs is declared: an end-of-text token and "!", token 0, are learnt, and spare white space is dropped."""
    train_caption(tmp_path)
    tokenizer = as_gpt2()
    prompt, texts = texts_of("clipcap", tokenizer, tmp_path, adapter=adapter)
    assert [text.media[0] for text in texts] == [make_key(name) for name in ROWS["train_caption pictures"]]
    assert build_projector(adapter, FeatureShape("pooled", 1, 8), 8).tokens == GOLDEN["places"][adapter]
    differs = load_recipe("clipcap").about["differs"]
    assert "end-of-text" in differs["prompt"] and "white space" in differs["prompt"] and "token 0" in differs["loss"]
    trimmed = unread = 0
    for text, (ids, targets), row in zip(texts, IDS["clipcap"], ROWS["train_caption"], strict=True):
        tidy = " ".join(row["caption"].split())
        if tidy != row["caption"]:
            assert tokenizer.decode(ids[1:]) == row["caption"]
            trimmed, ids = trimmed + 1, [None, *tokenizer(tidy).input_ids]
        else:
            assert targets == [int(bool(token)) for token in ids], "its loss reads all but the picture and token 0"
        unread += ids.count(0)
        assert tokens(prompt, text) == [[*ids, tokenizer.eos_token_id], [0, *[1] * len(ids)]]
    assert (len(texts), trimmed, unread) == (10, 4, 2)


def test_limber_reads_a_file_for_each_picture(tmp_path: Path) -> None:
    """It trains the end of a caption where the batch's padding gives one, here always: that is declared."""
    image_data(tmp_path)
    tokenizer = as_gpt2()
    prompt, texts = texts_of("limber", tokenizer, tmp_path)
    pictures = [make_key(name) for name in ROWS["image_data pictures"]]
    assert [text.media[0] for text in texts] == pictures and len(set(pictures)) == 9
    assert "end-of-text" in load_recipe("limber").about["differs"]["prompt"]
    ended = 0
    for text, (ids, targets) in zip(texts, IDS["limber"], strict=True):
        ended += ids[-1] == tokenizer.eos_token_id
        end = ([], []) if ids[-1] == tokenizer.eos_token_id else ([tokenizer.eos_token_id], [1])
        assert tokens(prompt, text) == [ids + end[0], targets + end[1]]
    assert (len(texts), ended) == (10, 9)


EPALM = {
    "epalm-image": karpathy,
    "epalm-image-large": karpathy,
    "epalm-audio": listed("audio", ".wav"),
    "epalm-video": listed("video", ".mp4"),
}


@pytest.mark.parametrize("recipe", EPALM)
def test_epalm_reads_every_word_of_a_caption(recipe: str, tmp_path: Path) -> None:
    """Its medium has a position of its own in inner layers, and none among the ids."""
    EPALM[recipe](tmp_path)
    prompt, texts = texts_of(recipe, OPT(), tmp_path)
    assert len(texts) == 10
    for text, want in zip(texts, IDS["epalm-image"], strict=True):
        pairs = [pair for pair in zip(*tokens(prompt, text), strict=True) if pair[0] is not None]
        assert [list(row) for row in zip(*pairs, strict=True)] == want


UNRELEASED = {
    "doubutsu-smol": "<image>{m}</image>{caption}</s>",
    "doubutsu-patch9": "{m}{caption}</s>",
    "doubutsu-llava": "<image>{m}</image>{caption}</s>",
    "anymal-image": "{m}{caption}</s>",
    "anymal-audio": "{m}{caption}</s>",
    "anymal-imu": "{m}{caption}</s>",
    "anymal-video": "{m}{caption}</s>",
}
OWN = {"first", "modern", "lmstudio"}  # of no published system


@pytest.mark.parametrize("recipe", UNRELEASED)
def test_without_official_code_a_caption_is_as_the_authors_describe_it(recipe: str, tmp_path: Path) -> None:
    assert load_recipe(recipe).about["differs"]["prompt"].startswith("no code was released")
    pretrain(tmp_path)
    tokenizer = tiny.byte_level(bos=True)
    prompt, texts = texts_of(recipe, tokenizer, tmp_path)
    for text, row in zip(texts, ROWS["pretrain"], strict=True):
        ids, targets = tokens(prompt, text)
        where, caption = ids.index(None), row["conversations"][1]["value"]
        shown = "{m}".join(tokenizer.decode(part) for part in (ids[:where], ids[where + 1 :]))
        assert shown == "<s>" + UNRELEASED[recipe].replace("{caption}", caption)
        learnt = tokenizer.decode([token for token, target in zip(ids, targets, strict=True) if target])
        assert learnt == caption + "</s>" * (recipe != "doubutsu-patch9")


def test_anymals_instructions_stand_before_the_picture(tmp_path: Path) -> None:
    """Wherever the data have `<image>`. Without code there is nothing to compare the ids with."""
    instruct(tmp_path)
    tokenizer = tiny.sentencepiece_like()
    prompt, texts = texts_of("anymal-instruct", tokenizer, tmp_path)
    assert load_recipe("anymal-instruct").about["differs"]["prompt"].startswith("no code was released")
    for text in (text for text in texts if text.media):
        ids, _ = tokens(prompt, text)
        asked = text.turns[0]["content"].replace("<image>", "").strip()
        assert tokenizer.decode(ids[: ids.index(None)]) == f"<s> [INST] {asked}"


def test_every_recipe_is_compared_here() -> None:
    tried = {name.partition(",")[0] for name in EXACT} | UNRELEASED.keys() | OWN | {"anymal-instruct"}
    tried |= {"clipcap", "mapl", "limber"} | EPALM.keys()
    assert tried == {name for name in recipe_names() if not name.startswith("demo")}


def test_what_is_read_as_a_caption(tmp_path: Path) -> None:
    """A single exchange about one medium with one of LLaVA's requests; or any, if the recipe says so; or none."""
    pretrain(tmp_path)
    for read, asked in ((("requested", "drop"), 0), (("all", "drop"), 0), (("requested", "question"), 10)):
        options = {"captions": read[0], "caption_requests": read[1]}
        _, texts = texts_of("limber", GPT2(), tmp_path, **options)
        assert sum(question_of(text) is not None for text in texts) == asked
    (tmp_path / "b").mkdir()
    instruct(tmp_path / "b")
    _, texts = texts_of("limber", GPT2(), tmp_path / "b")
    assert sum(question_of(text) is None for text in texts) == 0, "conversations stay what they are"
    _, texts = texts_of("limber", GPT2(), tmp_path / "b", captions="all")
    assert [text.id for text in texts if question_of(text) is None] == ["0", "1", "5", "6", "8", "9"]
