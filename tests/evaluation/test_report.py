"""report.html: what is in it, and that nothing from data can act in it or reach out of it."""

import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny_media
from PIL import Image

from periscope.errors import ScoreError
from periscope.evaluation.metrics.names import plain_name
from periscope.evaluation.report import gallery
from periscope.evaluation.report import page as reports
from periscope.evaluation.report.chart import line_chart, smoothed, ticks
from periscope.evaluation.report.page import Medium, report
from periscope.evaluation.report.runs import RunFolder
from periscope.precompute.media import decode_sound
from periscope.precompute.preview import preview
from studies.screenshots import asked_for

EVIL = "<script>alert(1)</script>\"'><img src=https://example.com/x onerror=alert(2)>&amp;"


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    return stream.getvalue()


def row(number: int, answer: str, reference: str, prompt: str = "", control: str = "no") -> dict:
    return {"split": "heldout", "id": f"t{number}", "media": f"key-{number}", "prompt": prompt, "answer": answer,
            "reference": reference, "control": control}  # fmt: skip


def make_run(folder: Path, word: str = "fine") -> RunFolder:
    """A run folder as train.py and eval.py leave it, with `word` wherever words can come from data."""
    (folder / "steps" / "000020" / "adapter").mkdir(parents=True)
    (folder / "config.toml").write_text(f"adapter = 'mlp3'\nlr = 0.001\ntext = {json.dumps(word)}\n")
    (folder / "environment.json").write_text(json.dumps({"gpu": word, "packages": {"torch": "2.15"}}))
    (folder / "last").write_text("000020\n")
    (folder / "steps" / "000020" / "adapter" / "adapter.json").write_text(
        json.dumps({"encoder": {"name": word}, "template": {"delimiters": [word, ""]}})
    )
    lines = [{"step": step, "loss": 2 - step / 20, "lr": 0.001, "targets": 10, "seconds": 0.5} for step in range(1, 21)]
    lines.append({"step": 20, "heldout": {"real": 1.0, "shuffled": 2.0}, "scores": {"caption_f1": 0.5}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "lo')
    cell = word.replace("|", "\\|")
    (folder / "samples.md").write_text(
        "# The same\n"
        + "".join(
            f"\n## step {step}\n\n| medium | prompt | answer | reference |\n|---|---|---|---|\n"
            f"| key-0 |  | {said} {cell} | a dog {cell} |\n"
            for step, said in ((10, "a cat"), (15, "a cat"), (20, "a dog"))
        )
    )
    found = {"real": {"caption_f1": 0.75, "qa_accuracy": 0.5}, "shuffled": {"caption_f1": 0.5, "qa_accuracy": 0.25},
             "majority": {"qa_accuracy": 0.3}, "counts": {"caption_f1": 2, "qa_accuracy": 2},
             "intervals": {"real": {"caption_f1": [0.7, 0.8]}}, "n": 4, "warnings": [word]}  # fmt: skip
    (folder / "eval.json").write_text(json.dumps({"splits": {"heldout": found}, "step": "000020"}))
    rows = [row(0, f"a cat {word}", f"a dog {word}"), row(1, "a dog", "a dog"), row(2, "yes", "no", word),
            row(3, "no", "no", "is it?", control="yes")]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunFolder(folder)


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self.said += " "

    def handle_data(self, data: str) -> None:
        self.said += data

    def faults(self) -> list[str]:
        """Whatever could run or reach out."""
        found = []
        for tag, attributes in self.elements:
            if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "use", "a"):
                found.append(tag)
            for name, value in attributes.items():
                if name.startswith("on") or name in ("href", "xlink:href", "action", "formaction", "srcset", "srcdoc"):
                    found.append(f"{tag} {name}")
                if name == "src" and not re.match(r"data:(image/jpeg|audio/mpeg);base64,[A-Za-z0-9+/=]+\Z", value):
                    found.append(f"{tag} src {value[:40]}")
                if name == "style" and not re.fullmatch(r"((width|left):\d+\.\d%;?)+", value):
                    found.append(f"{tag} style {value}")
        return found


def test_nothing_from_data_acts_in_the_page_or_reaches_out(tmp_path):
    run = make_run(tmp_path / "run", EVIL)
    page = Page(report(run, lambda key: Medium((jpeg(), b"<svg onload=alert(3)>"), b"ID3", EVIL, EVIL)))
    assert not page.faults()
    policy = [attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes and tag]
    assert policy == ["default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
                      "form-action 'none'"]  # fmt: skip
    assert page.said.count(EVIL) >= 12, "the words themselves are shown as they are"
    style = re.findall(r"<style>(.*?)</style>", report(run, lambda key: Medium()), re.S)
    assert len(style) == 1 and not re.search(r"url|@import|https?:", style[0])


def test_without_escaping_the_same_page_would_act(tmp_path, monkeypatch):
    real = reports.Environment
    monkeypatch.setattr(reports, "Environment", lambda **how: real(**how | {"autoescape": False}))
    monkeypatch.setattr(reports, "_template", reports._template.__wrapped__)  # compiled anew
    page = Page(report(make_run(tmp_path / "run", EVIL), lambda key: Medium(name=EVIL)))
    assert "script" in page.faults() and any(fault.startswith("img src https") for fault in page.faults())


def test_a_page_holds_scores_controls_curves_cases_and_settings(tmp_path):
    page = Page(report(make_run(tmp_path / "run"), lambda key: Medium((jpeg(),), None, f"photos/{key}.jpg")))
    said = " ".join(page.said.split())
    for part in ("caption_f1 0.750 0.700 to 0.800 0.500 - 0.50 2", "qa_accuracy 0.500 - 0.250 0.300 0.33 2",
                 "Loss, nats per target token", "held out, shuffled", "Scores of the held-out samples",
                 "photos/key-2.jpg", "shuffled: yes", "lr 0.001", "packages.torch 2.15",
                 "encoder.name fine", "caption_f1 0.750 95% interval 0.700 to 0.800 0.500 with shuffled features",
                 "encoder fine", "wrong fine yes reference: no", "right is it? no reference: no"):  # fmt: skip
        assert part in said, part
    assert said.index("Held-out inputs") < said.index("Scores and controls"), "people look at pictures first"
    hardest, best = said.split("Worst answers")[1].split("Best answers")
    assert "a cat fine reference: a dog fine" in hardest and best.index("a dog reference: a dog") < best.index(
        "is it? no"
    )
    assert "10 to 15 a cat fine" in said and "20 a dog fine" in said
    assert [tag for tag, _ in page.elements].count("mark") == 1


def test_a_run_that_was_never_scored_has_a_page_too(tmp_path):
    (tmp_path / "config.toml").write_text("adapter = 'mlp3'\n")
    assert "hasn't been scored yet" in report(RunFolder(tmp_path), lambda key: Medium())
    with pytest.raises(ScoreError, match="is not a run"):
        RunFolder(tmp_path / "elsewhere")


def test_scores_that_end_elsewhere_than_at_1_have_their_own_scale(tmp_path):
    made = {"real": {"caption_cider": 0.8, "qa_vqa": 0.6, "qa_yes/no": 0.9}, "shuffled": {"caption_cider": 0.3},
            "intervals": {"real": {"caption_cider": [0.5, 1.5]}},
            "warnings": ["blind: x", "majority: from y"]}  # fmt: skip
    found = reports.scores(made)
    cider, whole, part = found["rows"]
    assert (cider["bar"], cider["mark"], cider["whisker"]) == ("8.0%", "3.0%", ("5.0%", "10.0%"))
    assert cider["gain"] == pytest.approx(0.5), "older results hold no gains: of CIDEr it is the difference"
    assert (whole["bar"], whole["mark"], whole["part"], part["part"]) == ("60.0%", None, False, True)
    assert (found["notes"], found["warnings"]) == (["majority: from y"], ["blind: x"])
    own = {"prompt": "", "reference": "a cat", "answer": "a dog", "score": {"caption_cider": 2.0, "caption_f1": 0.5}}
    assert gallery.quality(own) == pytest.approx(0.35) and gallery.verdict(own) == ("f1 0.50", "")


def test_a_page_shows_no_home_folder_and_what_is_broken_is_left_out(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", f"{tmp_path}/photos")
    monkeypatch.setattr(reports, "HOME", str(tmp_path))
    said = Page(report(run, lambda key: Medium())).said
    assert f"text{tmp_path}" not in "".join(said.split()) and "~/photos" in said
    folder = run.path
    (folder / "eval.json").write_text(
        '{"splits": {"a": {"real": {"x": NaN, "y": 0.5, "z": "1"}, "n": 2, "intervals": 3}, "b": 7}}'
    )
    (folder / "samples.md").write_text("# x\n\n## step \n\n## step 5\n\n## step ")
    (folder / "steps/000020/adapter/adapter.safetensors").write_bytes(b"broken")
    broken = RunFolder(folder)
    assert broken.splits == {"a": {"real": {"y": 0.5}, "n": 2, "intervals": 3}} and broken.parameters == 0
    assert "0.500" in report(broken, lambda key: Medium())


def test_a_chart_puts_points_where_they_belong():
    svg = line_chart({"a<b": [(0, 0.0), (5, 2.0), (10, 4.0)], "none": [(1, float("nan"))]})
    path = re.search(r'class="line line-0" d="M(.*?)"', svg)[1]
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert points == [(58, 216), (253, 115), (448, 14)]
    assert (
        re.search(r'd="M(.*?)"', line_chart({"a": [(0, 0.0), (1, 0.5)]}, most=1.0)[-200:])[1]
        == "58.0 216.0L448.0 115.0"
    )
    assert 'aria-label="a&lt;b, none"' in svg and "line-1" not in svg
    assert line_chart({"nothing": [(1, float("inf"))]}) == ""
    assert ticks(0, 3.05) == [0, 1, 2, 3] and ticks(0, 0.9) == [0, 0.2, 0.4, 0.6, 0.8] and ticks(98, 99)[0] == 98
    assert [y for _, y in smoothed([(1, 2.0), (2, float("nan")), (3, 2.0)])] == pytest.approx([2.0, 2.0])


class Held:
    """A set of one medium, as `preview` sees it."""

    def __init__(self, modality: str, origin: str, data: bytes):
        self.facts = {"modality": modality, "origin": origin, "sha256": hashlib.sha256(data).hexdigest()}

    def info(self, key: str) -> dict:
        return self.facts

    def thumbnail(self, key: str) -> None:
        return None


def test_a_sound_can_be_heard_and_a_clip_seen_where_the_very_file_is_at_hand(tmp_path):
    sound, clip = tiny_media.sound(tiny_media.sine(440, 12, 16000)[None], 16000), tiny_media.clip(tiny_media.greys(12))
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.wav").write_bytes(sound)
    (tmp_path / "media" / "b.mp4").write_bytes(clip)
    (tmp_path / "secret.wav").write_bytes(sound)
    pictures, heard, note = preview(Held("audio", "a.wav", sound), "key", tmp_path / "media")
    wave = decode_sound(heard, 16000)
    assert not pictures and not note and len(heard) < 70_000 and abs(len(wave) / 16000 - 10) < 0.2
    assert np.abs(np.fft.rfft(wave[8000 : 8000 + 16000])).argmax() == 440
    frames, heard, note = preview(Held("video", "b.mp4", clip), "key", tmp_path / "media")
    assert (
        len(frames) == 6 and all(frame.startswith(b"\xff\xd8\xff") for frame in frames) and heard is None and not note
    )
    for held, folder, said in (
        (Held("audio", "a.wav", sound), None, "--data FOLDER"),
        (Held("audio", "a.wav", clip), "media", "isn't the one that was encoded"),
        (Held("audio", "../secret.wav", sound), "media", "leaves the folder"),
        (Held("audio", "c.wav", sound), "media", "can't be opened"),
    ):
        _, heard, note = preview(held, "key", tmp_path / folder if folder else None)
        assert heard is None and said in note


def test_what_a_page_asks_for_is_read_from_the_browsers_log():
    params = [
        {"url": "file:///r.html", "initiator": "null"}, {"url": "data:image/jpeg;base64,AA", "initiator": "null"},
        {"url": "https://update.example/", "initiator": "not an origin"}, {"url": "https://x.example/a"},
    ]  # fmt: skip
    quiet = json.dumps({"events": [{"params": one} for one in params] + [{"type": 1}]})
    assert asked_for(quiet, "file:///r.html") == set()
    loud = json.dumps({"events": [{"params": {"url": "https://x.example/a", "initiator": "null"}}]})
    assert asked_for(loud, "file:///r.html") == {"https://x.example/a"}


def test_the_verdict_and_what_is_missing_stand_first(tmp_path):
    run = make_run(tmp_path / "run")
    result = json.loads((run.path / "eval.json").read_text())
    older = Page(report(run, lambda key: Medium())).elements
    assert not any(attributes.get("class", "").startswith("verdict") for _, attributes in older)
    found = result["splits"].pop("heldout")
    for seeing, colour in (("sees", "good"), ("blind", "bad"), ("unclear", "unclear"), (EVIL, "unclear")):
        told = {"seeing": seeing, "sentence": f"It is so: {EVIL}", "measure": "loss"}
        result |= {"splits": {"alpha": found, "heldout": found | {"verdict": told}}, "finished": False}
        result["complete"] = {"heldout": ["real", "shuffled"], "alpha": []}
        (run.path / "eval.json").write_text(json.dumps(result))
        page = Page(report(RunFolder(run.path), lambda key: Medium()))
        assert not page.faults() and page.said.index("It is so") < page.said.index("caption_f1")
        assert [tag for tag, _ in page.elements].index("p") < [tag for tag, _ in page.elements].index("h1")
        assert {"class": f"verdict {colour}"} in [attributes for _, attributes in page.elements]
        assert "Complete are heldout: real, shuffled; alpha: nothing yet." in page.said
        assert "Scores of the split heldout" in page.said, "not of the split that is first by name"


def captions(count: int, right: int) -> list[dict]:
    """Rows about as many media; the first `right` answers are right."""
    return [row(i, "a dog" if i < right else "the cat", "a dog") for i in range(count)]


@pytest.mark.parametrize(("count", "right", "worst", "best"), [(8, 4, 4, 4), (8, 0, 4, 4), (3, 2, 1, 2), (3, 1, 2, 1),
                                                               (1, 1, 0, 1), (1, 0, 1, 0), (40, 20, 6, 6)])  # fmt: skip
def test_no_answer_is_among_the_best_and_the_worst(count, right, worst, best):
    ranked = sorted(captions(count, right), key=gallery.quality)
    low, high = gallery.extremes(ranked, 6)
    assert (len(low), len(high)) == (worst, best)
    assert not {one["media"] for one in low} & {one["media"] for one in high}
    assert max(map(gallery.quality, low), default=0) <= min(map(gallery.quality, high), default=1)


def test_captions_and_questions_share_the_best_and_the_worst():
    asked = [one | {"media": f"q-{one['id']}", "prompt": "What?"} for one in captions(8, 4)]
    ranked = sorted([*captions(8, 4), *asked], key=gallery.quality)
    for rows in gallery.extremes(ranked, 6):
        assert [bool(one["prompt"]) for one in rows] == [False] * 3 + [True] * 3


def test_scores_that_say_little_are_no_headline():
    real = dict.fromkeys(("caption_bleu4", "caption_cider", "caption_exact", "caption_f1", "caption_set_f1"), 0.5)
    assert [tile["name"] for tile in reports.tiles({"real": real})] == ["caption_exact", "caption_set_f1"]
    assert [tile["name"] for tile in reports.tiles({"real": {"caption_f1": 1.0, "qa_accuracy": 0.5}})] == [
        "qa_accuracy", "caption_f1"]  # fmt: skip


def test_scores_have_plain_names(tmp_path):
    said = " ".join(Page(report(make_run(tmp_path / "run"), lambda key: Medium())).said.split())
    assert "words shared with the caption caption_f1 0.750" in said and "questions answered right qa_accuracy" in said
    assert plain_name("qa_yes/no") == "questions: yes/no" and plain_name("pope_f1_popular") == "pope f1 popular"


@pytest.mark.parametrize(("losses", "told"), [
    ([3, 2, 1.5], "Best at step 3: held-out loss 1.500."),
    ([3, 1.5, 2], "It rose to 2.000 by step 3: after the best step it learnt by heart (overfitting)."),
    ([float("nan"), 1.5, 1.51], "Best at step 2: held-out loss 1.500."),
])  # fmt: skip
def test_the_best_step_and_overfitting_are_marked(losses, told, tmp_path):
    run = make_run(tmp_path / "run")
    rows = [{"step": step, "heldout": {"real": loss}} for step, loss in enumerate(losses, 1)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = report(RunFolder(run.path), lambda key: Medium())
    page = Page(text)
    assert told in page.said and not page.faults()
    assert ('class="after"' in text) == ("overfitting" in told) == ("overfitting</text>" in text)
    x = re.search(r'class="best" d="M([0-9.]+) ', text)[1]
    step = int(re.search(r"Best at step (\d)", page.said)[1])
    assert float(x) == pytest.approx(58 + (460 - 58 - 12) * step / 3, abs=0.1)
    assert f"best: step {step}" in page.said


def test_a_page_without_evaluations_marks_nothing():
    assert reports.best_look([]) == (None, "") == reports.best_look([(1, float("inf"))])
