"""The demo of stage 2: what is asked in three wordings is one question, and the page is made from what was found."""

import json
import random
import re

from periscope.demo.scenes import FORMS, QUESTIONS, draw_scenes
from studies.corpus import MEDIA
from studies.stage2 import (
    BEGIN,
    END,
    FOUND,
    LEFT_OUT,
    PAGE,
    TAUGHT,
    UNSEEN,
    WORDINGS,
    Options,
    Worded,
    table,
    write_texts,
)


def test_every_form_has_wordings_that_no_other_set_has():
    own = {wording for wordings in QUESTIONS.values() for wording in wordings}
    taught, unseen = ({wording for some in forms.values() for wording in some} for forms in (TAUGHT, UNSEEN))
    assert set(TAUGHT) == set(UNSEEN) == set(FORMS)
    assert not own & taught and not own & unseen and not taught & unseen
    for forms in (TAUGHT, UNSEEN):
        for form, wordings in forms.items():
            assert all(set(re.findall(r"{(\w+)}", wording)) - {"a"} == set(form[1:]) for wording in wordings)


def test_wordings_change_the_words_alone():
    things = draw_scenes(0, 1, "heldout")[0]
    asked = {name: Worded(name, left_out=False).draw_questions(things, 8, random.Random(1)) for name in WORDINGS}
    assert [ask for ask, _, _ in asked["own"]][:1] == [ask for ask, _, _ in asked["unseen"]][:1]
    for name, questions in asked.items():
        for ask, said, truth in questions:
            assert truth == MEDIA["image"].task.answer(ask, things) and "{" not in said, name
    kinds = {
        ask["kind"] for n in range(9) for ask, _, _ in Worded("taught").draw_questions(things, 8, random.Random(n))
    }
    assert LEFT_OUT not in kinds and len(kinds) == 6


def test_what_is_asked_is_never_trained_on(tmp_path):
    lines = []
    for split, count in (("train", 30), ("heldout", 20)):
        for number, things in enumerate(draw_scenes(0, count, split)):
            common = {"media": [f"{split}-{number}"], "split": split}
            caption = [{"role": "assistant", "content": "a"}]
            lines.append({"id": f"{split}-{number}-c", **common, "turns": caption, "meta": {"objects": things}})
            for k, (ask, said, truth) in enumerate(
                Worded("own", False).draw_questions(things, 4, random.Random(number))
            ):
                turns = [{"role": "user", "content": said}, {"role": "assistant", "content": truth}]
                meta = {"objects": things, "ask": ask}
                lines += [{"id": f"{split}-{number}-{k}", **common, "turns": turns, "meta": meta}] * (
                    split == "heldout"
                )
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_texts(tmp_path / "texts", Options(features=tmp_path / "set", scenes=8))
    found = {
        name: [json.loads(line) for line in (tmp_path / "texts" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pictures", "mixed", "asked")
    }
    scored = {line["media"][0] for line in found["asked"] if line["meta"].get("ask", {}).get("kind") != LEFT_OUT}
    assert scored == {f"heldout-{n}" for n in range(8)}
    learnt = [line for line in found["pictures"] if line["split"] == "train"]
    assert learnt and all(line["meta"]["ask"]["kind"] != LEFT_OUT for line in found["pictures"])
    assert not scored & {line["media"][0] for line in found["pictures"]}
    words = [line for line in found["mixed"] if not line["media"]]
    assert len(words) > 2000 and len(found["mixed"]) == len(words) + len(found["pictures"])
    forms = [line["meta"]["form"] for line in found["asked"] if "form" in line["meta"]]
    assert {name: forms.count(name) for name in WORDINGS} == dict.fromkeys(WORDINGS, forms.count("own"))


def test_the_page_is_made_from_what_was_found():
    made = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert made == table(json.loads(FOUND.read_text())), "python -m studies.stage2 --tables"
