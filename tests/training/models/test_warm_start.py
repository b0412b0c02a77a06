"""The warm start: what its contrast measures, that it moves tokens to words and nothing else, and where it matters."""

import math
import time

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn import functional
from toy_scenes import prepared, scene_texts
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from periscope.adapters.lm.identity import weights_sha256
from periscope.adapters.lm.injection import injection_into
from periscope.adapters.lm.language_model import freeze
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.errors import AdapterError, RunError
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset
from periscope.training.data.steps import TrainingSteps
from periscope.training.models.warm_start import contrast, warm_start
from periscope.training.resolve import settle
from periscope.training.step import take_step


def test_the_contrast_tells_pairs_and_no_constant_meets_it():
    torch.manual_seed(0)
    words = torch.randn(32, 16)
    chance = math.log(32)
    assert contrast(words, words) < 0.2
    assert contrast(3 * words, words) == pytest.approx(contrast(words, words).item(), abs=1e-5), "scale isn't judged"
    assert contrast(words, words.roll(1, 0)) > chance
    assert contrast(words.mean(0).expand(32, -1), words) > chance - 0.01
    common = 20 * torch.randn(16)  # what every caption has: function words
    assert contrast(words + common, words + common) < 0.2
    plain = [functional.normalize(words + common, dim=-1) for _ in range(2)]
    without = functional.cross_entropy(10 * plain[0] @ plain[1].T, torch.arange(32))
    assert without > 0.5 * chance, "cosines alone, not less their mean, hardly tell them"


def test_media_with_the_same_words_are_no_contrast_to_each_other(language_model_folder):
    torch.manual_seed(0)
    tokens, words = torch.randn(4, 16), torch.randn(4, 16)
    words[2] = words[0]
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    near, far = (functional.normalize(rows - rows.mean(0), dim=-1) for rows in (tokens, words))
    scores, want = 10 * near @ far.T, 0.0
    for i, others in enumerate(([1, 3], [0, 2, 3], [1, 3], [0, 1, 2])):  # of each medium, those with other words
        for row in (scores[i], scores[:, i]):
            want += (row[[i, *others]].logsumexp(0) - row[i]).item() / 8
    assert contrast(tokens, words, same).item() == pytest.approx(want, abs=1e-5)
    assert contrast(words, words).item() > 2 * contrast(words, words, same).item()
    model, encoded = prepared(language_model_folder)
    alike = [Text(f"t{i}", (f"m{i}",), ({"role": "assistant", "content": "a red star"},), "train") for i in range(64)]
    losses = warm_start(model, encoded, encoded.keep(alike, 256), 3, 1e-3, seed=0)
    assert losses == [0.0] * 3, "nothing tells these apart"
    assert all(parameter.isfinite().all() for parameter in model.adapter.parameters())


@pytest.mark.parametrize("output_norm", [True, False])
def test_tokens_move_to_their_words_and_nothing_else_moves(output_norm, language_model_folder):
    ends = []
    for _ in range(2):
        model, encoded = prepared(language_model_folder, output_norm=output_norm, soft_prompt=2)
        rows = encoded.features.read_many([f"m{i}" for i in range(64)], "pooled")
        model.adapter.match_scale(rows)
        frozen, prompt = weights_sha256(model.lm.model), model.adapter.soft_prompt.vectors.clone()
        chance = torch.get_rng_state()
        losses = warm_start(model, encoded, encoded.keep(scene_texts(), 256), 30, 3e-3, seed=5)
        assert torch.equal(torch.get_rng_state(), chance), "draws nothing, so a resumed run draws what this one does"
        assert len(losses) == 30 and losses[-1] < 0.6 * losses[0], losses
        assert weights_sha256(model.lm.model) == frozen and torch.equal(model.adapter.soft_prompt.vectors, prompt)
        with torch.no_grad():
            ratio = model.adapter(rows).pow(2).mean(-1).sqrt().median() / model.lm.embedding_rms
        assert 0.7 < ratio < 1.4
        ends.append(model.adapter.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_captions_come_before_questions(language_model_folder):
    """An answer such as `yes` says little of a medium, so it is taken only where there is no caption."""
    model, encoded = prepared(language_model_folder)
    asked = [Text(f"q{i}", (f"m{i}",), ({"role": "user", "content": "star?"}, {"role": "assistant", "content": "blue"}),
                  "train") for i in range(64)]  # fmt: skip
    start = {key: value.clone() for key, value in model.adapter.state_dict().items()}
    with_questions = warm_start(model, encoded, encoded.keep(scene_texts() + asked, 256), 3, 1e-3, seed=0)
    model.adapter.load_state_dict(start)
    assert warm_start(model, encoded, encoded.keep(scene_texts(), 256), 3, 1e-3, seed=0) == with_questions
    model.adapter.load_state_dict(start)
    alone = warm_start(model, encoded, encoded.keep(asked, 256), 3, 1e-3, seed=0)
    assert len(alone) == 3 and alone != with_questions


def test_a_warm_start_sees_the_stored_views(language_model_folder, monkeypatch):
    model, encoded = prepared(language_model_folder)
    encoded.features.manifest["features"]["pooled"]["views"] = 3
    read, asked = encoded.features.read_many, []

    def noted(keys, kind, views=None):
        asked.append(list(views))
        return read(keys, kind)

    monkeypatch.setattr(encoded.features, "read_many", noted)
    warm_start(model, encoded, encoded.keep(scene_texts(), 256), 4, 1e-3, seed=0)
    assert {view for step in asked for view in step} == {0, 1, 2} and len({tuple(step) for step in asked}) == 4


def test_a_long_warm_start_shows_its_progress(language_model_folder, monkeypatch, capsys):
    model, encoded = prepared(language_model_folder)
    captions = encoded.keep(scene_texts(), 256)
    warm_start(model, encoded, captions, 3, 1e-3, seed=0)
    assert "warm start" not in capsys.readouterr().err, "a short one is silent"
    monkeypatch.setattr("periscope.training.models.warm_start.SILENT_SECONDS", 0)
    warm_start(model, encoded, captions, 3, 1e-3, seed=0)
    assert "warm start   0% 0/3 steps [" in capsys.readouterr().err


def test_what_has_no_words_to_start_from_is_refused(language_model_folder):
    model, encoded = prepared(language_model_folder)
    with pytest.raises(AdapterError, match="about one medium each"):
        warm_start(model, encoded, encoded.keep([], 256), 3, 1e-3, seed=0)
    model, encoded = prepared(language_model_folder, "none", soft_prompt=2)
    with pytest.raises(AdapterError, match="not none"):
        warm_start(model, encoded, encoded.keep(scene_texts(), 256), 3, 1e-3, seed=0)
    shape = FeatureShape("layers", 1, 24)
    inner = Adapter("epalm", shape, model.lm.hidden_size, 0.1, injection=injection_into(model.lm, 1))
    with pytest.raises(AdapterError, match="not epalm"):
        warm_start(AdaptedModel(model.lm, inner, model.prompt), encoded, encoded.keep([], 256), 3, 1e-3, seed=0)
    with pytest.raises(RunError, match="--warm-start is -1"):
        settle({"warm_start": -1}, {})


# Where it matters: in-context retrieval (Pantazopoulos et al. 2024, arXiv 2409.05395, on a small model). A frozen
# GPT-NeoX knows how to say at which place a symbol stood. Each symbol is now a patch with a code of its own.
SYMBOLS, PLACES, CODE, NOISE = 16, 8, 48, 0.3
WORDS = [f"s{i}" for i in range(SYMBOLS)] + [f"p{i}" for i in range(PLACES)] + ["?", "</s>", "<unk>"]
MEDIA, HELD = 3000, 200


def retrieval_model(steps: int = 1700) -> GPTNeoXForCausalLM:
    """Trained on `s3 s9 ... ? s9` -> `p1`."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(1)
    ask, end = WORDS.index("?"), WORDS.index("</s>")
    model = GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=end,
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, step / 100) * (1 - step / steps)
        order, place = rows_of_symbols(128, chance), torch.randint(PLACES, (128, 1), generator=chance)
        ids = torch.cat([order, torch.full((128, 1), ask), order.gather(1, place), SYMBOLS + place], 1)
        ids = torch.cat([ids, torch.full((128, 1), end)], 1)
        logits = model(ids, logits_to_keep=3).logits[:, :2]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, -2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def rows_of_symbols(count: int, chance: torch.Generator) -> torch.Tensor:
    return torch.rand(count, SYMBOLS, generator=chance).argsort(1)[:, :PLACES]


class Codes:
    """A feature set of pictures with a noisy code for each symbol."""

    def __init__(self):
        chance = torch.Generator().manual_seed(9)
        self.manifest = {"features": {"patches": {}}}
        self.order = rows_of_symbols(MEDIA, chance)
        self.rows = torch.randn(SYMBOLS, CODE, generator=chance)[self.order]
        self.rows = (self.rows + NOISE * torch.randn(self.rows.shape, generator=chance)).half()

    def __len__(self):
        return len(self.rows)

    def row(self, key):
        return int(key)

    def read_many(self, keys, kind, **_):
        return self.rows[[int(key) for key in keys]]

    def texts(self) -> list[Text]:
        found, chance = [], torch.Generator().manual_seed(3)
        for key, row in enumerate(self.order.tolist()):
            place = int(torch.randint(PLACES, (1,), generator=chance))
            asked = {"role": "user", "content": f"s{row[place]}"}
            answer = {"role": "assistant", "content": f"p{place}"}
            caption = {"role": "assistant", "content": " ".join(f"s{i}" for i in row)}
            found += [Text(f"c{key}", (str(key),), (caption,), "train"),
                      Text(f"q{key}", (str(key),), (asked, answer), "train")]  # fmt: skip
        return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_projector_that_never_takes_off_does_with_a_warm_start():
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    lm = freeze("retrieval", retrieval_model(), tokenizer)
    features = Codes()
    texts = features.texts()
    prompt = Prompt(tokenizer, Template(delimiters=("", ""), question="? {} "))
    right = {}
    for seed in (0, 1):
        for warm, steps in ((0, 600), (60, 300)):
            began = time.process_time()
            torch.manual_seed(seed)
            adapter = Adapter("mlp", FeatureShape("patches", PLACES, CODE), lm.hidden_size, lm.embedding_rms)
            model = AdaptedModel(lm, adapter, prompt)
            encoded = TextFeatureDataset(features, prompt, adapter)
            captions, questions = (encoded.keep(texts[2 * HELD + i :: 2], 64) for i in (0, 1))
            warm_start(model, encoded, captions, warm, 1e-3, seed)
            batches = TrainingSteps(encoded, questions, 64, seed)
            optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3, weight_decay=0.0)
            for step in range(steps):
                take_step(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), batches[step], 64, 1.0)
            asked = encoded.batch(texts[1 : 2 * HELD : 2], answer=False)
            said = model.generate(asked.texts, asked.features, 1)
            wanted = [text.turns[-1]["content"] for text in texts[1 : 2 * HELD : 2]]
            right[seed, warm] = sum(a == b for a, b in zip(said, wanted, strict=True)) / HELD
            seconds = time.process_time() - began
            print(f"seed {seed}: {warm} steps of warm start, {steps} of training: {right[seed, warm]:.2f} of {HELD} "
                  f"new pictures right (chance {1 / PLACES:.2f}), {seconds:.0f} s", flush=True)  # fmt: skip
    assert all(right[seed, 60] > 0.8 and right[seed, 60] > right[seed, 0] + 0.4 for seed in (0, 1)), right
