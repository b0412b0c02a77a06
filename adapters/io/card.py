"""The model card of an adapter folder: metadata for the Hub, and what a reader wants to know first."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.names import is_hub_id

LIBRARY = "periscope"
PIPELINES = {"image": "image-text-to-text", "audio": "audio-text-to-text", "video": "video-text-to-text"}
EXAMPLES = {"image": "cat.jpg", "audio": "bark.wav", "video": "clip.mp4", "imu": "window.csv"}
CONTROLS = ("shuffled", "blank", "none", "majority")
OVERALL = ("qa_accuracy", "qa_vqa")  # scores over all kinds of question


def card(
    config: AdapterConfig,
    parameters: int,
    lora_parameters: int = 0,
    repo: str | None = None,
    result: Mapping | None = None,
    samples: Sequence[Mapping] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
    own: Sequence[str] = (),
    picture: str = "",
) -> str:
    """README.md of an adapter with so many parameters, and those of its LoRA.

    For sharing: `repo` is its place on the Hub, `result` the content of eval.json, `samples` rows of predictions.jsonl
    that may be public, `license` the adapter's own, `datasets` hub ids of its training data, `own` which of "lm" and
    "encoder" are in a folder of the person sharing, where others can't fetch them, `picture` the file with the samples.
    """
    sections = [
        _metadata(config, repo, result, license, datasets),
        f"# {_line(config.adapter)} adapter",
        _summary(config, parameters),
        _lora(config, lora_parameters) if lora_parameters else _TRAINED if config.language_model.folder else _UNCHANGED,
    ]
    if repo:
        sections.append(_use(config, repo, own))
    if samples:
        sections.append(_samples(samples, picture))
    if result:
        sections.append(_scores(config, result))
    training = "".join(
        f"| {_cell(key.replace('_', ' '))} | {_cell(_rounded(value))} |\n" for key, value in config.training.items()
    )
    sections.append(f"| training | |\n|---|---|\n{training}".rstrip())
    if repo:
        sections.append(_licences(config, license))
    sections.append("`adapter.json` says exactly which encoder, preprocessing, language model and template it needs.")
    return "\n\n".join(sections) + "\n"


_TRAINED = (
    "The language model was trained too: `lm/` holds all of it, for `transformers` to load. The encoder isn't in this "
    "folder."
)
_UNCHANGED = "Neither the encoder nor the language model was changed, and neither is in this folder."


def _metadata(
    config: AdapterConfig, repo: str | None, result: Mapping | None, license: str | None, datasets: Sequence[str]
) -> str:
    lm, modality = config.language_model.name, config.modality
    base: dict[str, Any] = {"base_model": lm, "base_model_relation": "adapter"} if is_hub_id(lm) else {}
    pipeline = PIPELINES.get(modality, "text-generation") if config.tokens else "text-generation"
    measured = _results(result, pipeline, config.training) if repo and result else None
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=pipeline,
        license=license,
        datasets=list(datasets) or None,
        tags=[LIBRARY, modality, config.adapter],
        eval_results=measured or None,
        model_name=repo.split("/")[1] if repo and measured else None,
        **base,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(result: Mapping, pipeline: str, training: Mapping) -> list[EvalResult]:
    """The scores in the form of the Hub's model-index, with their controls, under the name of the benchmark or of the
    feature set that was scored. Scores of single kinds of question are only in the card's table.
    """
    results = []
    scored = Path(str(result.get("features") or training.get("features", "held-out media"))).name
    name = result.get("task") or scored
    for split, scores in (result.get("splits") or {}).items():
        overall = {
            name: value for name, value in scores["real"].items() if name in OVERALL or not name.startswith("qa_")
        }
        for score, value in overall.items():
            facts = {control: scores[control][score] for control in CONTROLS if score in (scores.get(control) or {})}
            interval = ((scores.get("intervals") or {}).get("real") or {}).get(score)
            facts |= {"interval_95": interval} if interval else {}
            facts |= {"n": scores["counts"][score]} if score in (scores.get("counts") or {}) else {}
            results.append(
                EvalResult(
                    task_type=pipeline,
                    dataset_type=name,
                    dataset_name=name,
                    dataset_split=split,
                    metric_type=score,
                    metric_value=value,
                    metric_name=score,
                    metric_args=facts or None,
                )
            )
    return results


def _summary(config: AdapterConfig, parameters: int) -> str:
    lm, encoder = _line(config.language_model.name), config.encoder
    state = "tuned" if config.language_model.folder else "frozen"
    if not config.tokens:
        return (
            f"{parameters:,} parameters for the {state} language model `{lm}`: a soft prompt of {config.soft_prompt}; "
            "no medium is read."
        )
    return (
        f"{parameters:,} parameters that let the {state} language model `{lm}` read {config.modality} features\n"
        f"(`{config.features.kind}`) of the encoder `{_line(encoder.get('name', encoder.get('id')))}` as "
        f"{config.tokens} tokens."
    )


def _lora(config: AdapterConfig, parameters: int) -> str:
    assert config.lora is not None
    return (
        f"The language model was tuned too: `lora/` holds {parameters:,} parameters of LoRA, r={config.lora.r} and\n"
        f"alpha={config.lora.alpha}, beside its own weights, which are unchanged. "
        "`peft.PeftModel.from_pretrained` loads it.\nNeither the encoder nor the language model is in this folder."
    )


def _use(config: AdapterConfig, repo: str, own: Sequence[str]) -> str:
    example = EXAMPLES.get(config.modality, "file")
    folders = "".join(f', {model}="FOLDER"' for model in own)
    names = {"lm": f"the language model `{_line(config.language_model.name)}`",
             "encoder": f"the encoder `{_line(config.encoder.get('name'))}`"}  # fmt: skip
    where = f"""FOLDER is where you have {" and ".join(names[model] for model in own)}, which can't be fetched by name.
It is checked to be what this was trained with."""
    fetched = "Both models are found or\nfetched by the names above, and checked to be those this was trained with."
    flags = "".join(f" --{model} FOLDER" for model in own)
    return f"""## Use

From a clone of Periscope:

```python
import periscope

eyes = periscope.load("{repo}"{folders})
print(eyes.caption("{example}"))
```

or `python eval.py --run {repo} --{config.modality} {example}{flags} --prompt "..."`. {where if own else fetched}"""


_SCORES = """## Scores

Measured on held-out media, with 95% intervals. Beside each score what the same model gets without looking: from another
medium's features (shuffled), from their mean (blank), from none, and by the commonest answer (majority). The gain is
the share of what shuffled features leave open that looking answers; of CIDEr and CLIPScore, the difference."""


def _scores(config: AdapterConfig, result: Mapping) -> str:
    lines = [_SCORES]
    if str(result.get("step", "")).lstrip("0") not in ("", str(config.training.get("step"))):
        lines.append(f"They are those of step {str(result['step']).lstrip('0')}.")
    for split, scores in (result.get("splits") or {}).items():
        controls = [name for name in CONTROLS if scores.get(name)]
        head = ["score", "real", *controls, "gain", "n"]
        rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for score, value in scores["real"].items():
            interval = ((scores.get("intervals") or {}).get("real") or {}).get(score)
            shown = f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
            control_scores = [_number(scores[control].get(score)) for control in controls]
            gain, count = (scores.get("gain") or {}).get(score), (scores.get("counts") or {}).get(score, "")
            rows.append("| " + " | ".join([_cell(score), shown, *control_scores, _number(gain, 2), str(count)]) + " |")
        lines.append(f"{_cell(split)}, {scores.get('n')} answers:\n\n" + "\n".join(rows))
    return "\n\n".join(lines)


def _samples(samples: Sequence[Mapping], picture: str) -> str:
    rows = []
    for row in samples:
        cells = (
            row.get("prompt") or "(caption)",
            *(row.get(name) or "" for name in ("answer", "reference", "control")),
        )
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    head = "## Samples\n\nHeld-out inputs, evenly chosen.\n\n"
    head += f"![Held-out inputs, with what was asked, answered and true]({picture})\n\n" if picture else ""
    head += "| prompt | answer | reference | from another's features |\n|---|---|---|---|\n"
    return head + "\n".join(rows)


def _licences(config: AdapterConfig, license: str | None) -> str:
    own = f"This adapter: {license}." if license else "Whoever shared this adapter named no licence for it."
    lm, encoder = _line(config.language_model.name), _line(config.encoder.get("name"))
    return f"""## Licences

{own} It is of use only with `{lm}` and `{encoder}`, which keep licences of their own, as does what it was
trained on: look at theirs."""


def _rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(text: object) -> str:
    """A name in a line of Markdown, to be put between backticks."""
    return " ".join(str(text).replace("`", "'").split())


def _cell(text: object) -> str:
    """Text of a table cell, with all markup escaped: no link, no image."""
    return re.sub(r"([\\|`\[\]])", r"\\\1", escape(" ".join(str(text).split()), quote=False))
