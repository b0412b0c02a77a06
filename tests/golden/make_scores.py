"""Write scores.json with the official programs, without `evaluation.metrics`: python tests/golden/make_scores.py
vqaEval.py

Captions were scored by pycocoevalcap 1.2 with Java 17.0.15. The "official" VQA scores are by GT-Vision-Lab/VQA's own
program as of 2021; the argument is the path of its PythonEvaluationTools/vqaEvaluation/vqaEval.py (put together from
copies here: the tables of commit c4e6a0e, and `evaluate` of a fork of the head, without their `print`s). The other two
variants are by lmms-eval 0.7.3's EvalAIAnswerProcessor, vqav2_process_results and textvqa_process_results. The script
needs all of these, and Java.
"""

import contextlib
import io
import json
import random
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

THINGS = (
    "man",
    "woman",
    "dog",
    "train",
    "kitchen sink",
    "surfer",
    "pizza",
    "two children",
    "street's corner",
    "o'clock",
)
DOING = (
    "stands",
    "is sitting",
    "isn't eating",
    "rides a (large) wave",
    "looks at the camera!",
    "carries 3.5 lbs. of fruit",
)
WHERE = (
    "on a wooden table",
    "in the U.S.A.",
    "near the water",
    "under a blue - grey sky",
    "at night; alone",
    "with 1,000 others",
)
SAID = [
    "yes", "No.", "two", "a dog", "The dog", "dont know", "can't", "cant", "1,000", "1,,000", "10:30", "it's red",
    "red/blue", "red, blue", "u.s.a.", "3.5", "none", "zero", "ten", "Im", "I'm", "black & white", "t-shirt", "?", "a",
    "peoples'", "yall'd've", "wont", "left  side", "the man's", "what? no!", "5 o'clock", "#1",
    "50%", "(unknown)", "a.b.c", "its red",
]  # fmt: skip


def caption(draw: random.Random) -> str:
    """One made-up caption; some with line separators, which must not matter."""
    words = f"{draw.choice(['A', 'The', 'Some'])} {draw.choice(THINGS)} {draw.choice(DOING)} {draw.choice(WHERE)}"
    return words + draw.choice(["", ".", " .", "...", ' "really"', "\u2028", "\r"])


def one_line(text: str) -> str:
    return " ".join(text.split())


def captions() -> dict:
    """500 predictions with five references each, their tokens and the scores of all and of each."""
    draw = random.Random(0)
    references = {f"{n}": [caption(draw) for _ in range(5)] for n in range(500)}
    predictions = {
        key: draw.choice(listed) if draw.random() < 0.3 else caption(draw) for key, listed in references.items()
    }
    predictions["7"] = ""

    def tokens(texts: dict) -> dict:
        wrapped = {key: [{"caption": one_line(one)} for one in listed] for key, listed in texts.items()}
        return PTBTokenizer().tokenize(wrapped)

    true, said = tokens(references), tokens({key: [predictions[key]] for key in references})
    with contextlib.redirect_stdout(io.StringIO()):
        blues, _ = Bleu(4).compute_score(true, said)
    found = {f"bleu{n}": value for n, value in enumerate(blues, 1)}
    each = {}
    for name, scorer in (("cider", Cider()), ("rouge_l", Rouge()), ("meteor", Meteor())):
        value, listed = scorer.compute_score(true, said)
        found[name], each[name] = float(value), [float(one) for one in listed]
    return {
        "predictions": predictions, "references": references, "tokens": {"said": said, "true": true},
        "scores": found, "each": each,
    }  # fmt: skip


def varied(draw: random.Random, text: str) -> str:
    """The same answer written otherwise; some ways of reading it see that, others don't."""
    return draw.choice((text, text, text.upper(), f"the {text}", f"{text}.", f"{text}?", f" {text}\n",
                        text.replace(" ", ","), text.replace("'s", " 's"), text.replace(",", "")))  # fmt: skip


def answers(program: Path) -> dict:
    """1,200 answers in normal form, and 1,000 questions with ten people's answers, each in three ways."""
    draw, process = random.Random(1), EvalAIAnswerProcessor()
    texts = [" ".join(draw.choice(SAID) for _ in range(draw.randint(1, 3))) for _ in range(1200)]
    normal = [process.process_digit_article(process.process_punctuation(text)) for text in texts]
    questions = []
    for n in range(1000):
        options = draw.sample(SAID, draw.choice((1, 2, 3)))
        people = [draw.choice(options) for _ in range(10)]
        answer = draw.choice([*options, draw.choice(SAID)])
        if n >= 300:
            people = [varied(draw, one) if draw.random() < 0.2 else one for one in people]
            answer = varied(draw, answer)
        listed = [{"answer": one, "answer_id": i} for i, one in enumerate(people)]
        always = vqav2_process_results({"answers": listed, "question_id": 0}, [answer])["exact_match"]
        m4c = textvqa_process_results({"answers": list(people), "question_id": 0}, [answer])["exact_match"]
        questions.append({"answer": answer, "people": people, "always": float(always), "m4c": float(m4c)})
    scorer = official(program, questions)
    for n, row in enumerate(questions):
        row["official"] = scorer.evalQA[n] / 100
    return {
        "texts": texts, "normal": normal, "m4c": [process(text) for text in texts], "questions": questions,
        "official": [scorer.processDigitArticle(scorer.processPunctuation(text)) for text in texts],
    }  # fmt: skip


def official(program: Path, questions: list[dict]):
    """The official program after it scored the questions, to 12 decimals of a per cent."""
    spec = spec_from_file_location("vqaEval", program)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    true = {
        n: {"answers": [{"answer": one, "answer_id": i} for i, one in enumerate(row["people"])],
            "question_type": "", "answer_type": ""}
        for n, row in enumerate(questions)
    }  # fmt: skip
    said = {n: {"answer": row["answer"]} for n, row in enumerate(questions)}
    asked = SimpleNamespace(qa=true, getQuesIds=lambda: list(true))
    scorer = module.VQAEval(asked, SimpleNamespace(qa=said), n=12)
    scorer.evaluate()
    return scorer


if __name__ == "__main__":
    made = {"captions": captions(), "answers": answers(Path(sys.argv[1]))}
    (Path(__file__).parent / "scores.json").write_text(json.dumps(made, indent=0, ensure_ascii=True) + "\n")
