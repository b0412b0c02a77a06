"""Several feature sets in one training: the shares, the order, one projector for a modality or one for each."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from periscope.adapters.composed import ComposedModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.errors import RunError
from periscope.shards.texts import Text
from periscope.training.config import named_sets
from periscope.training.data.dataset import TextFeatureDataset
from periscope.training.data.mix import MixedSteps, Quotas
from periscope.training.step import take_step


class Set:
    """Features of a few media, all with the same keys: of medium k they are `first + k` everywhere."""

    def __init__(self, first: int, width: int = 6, views: int = 1):
        self.first, self.width = first, width
        self.manifest = {"features": {"pooled": {"views": views}}}

    def __len__(self):
        return 64

    def row(self, key):
        return int(key[1:])

    def read_many(self, keys, kind, views=None):
        rows = [torch.full((self.width,), self.first + int(key[1:]) / 64) for key in keys]
        return torch.stack(rows).half() if rows else torch.empty(0, self.width).half()


WORDS = ["a red circle", "the quick brown fox", "blue", "in the top left, in the centre"]


def texts(n, alone=0):
    """Captions of media m0, m1 ... and `alone` questions without a medium."""
    about = [
        Text(f"t{i}", (f"m{i // 2}",), ({"role": "assistant", "content": WORDS[i % 4]},), "train") for i in range(n)
    ]
    turns = ({"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "blue"})
    return about + [Text(f"alone{i}", (), turns, "train") for i in range(alone)]


def adapted_model(lm, width=6, modality="image", soft=0):
    torch.manual_seed(width)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, width), lm.hidden_size, lm.embedding_rms, soft)
    template = Template(delimiters=(f"<{modality}>", "|"))
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, template, modality), token_noise=0.1)


@pytest.fixture(scope="module")
def lm(language_model_folder):
    return load_language_model(str(language_model_folder("llama")))


def mixed(model, sets, sizes, weights=None, batch=8, seed=0, **how):
    """A mix of sets of one modality."""
    datasets = [TextFeatureDataset(s, model.prompt, model.adapter, f"{i}/") for i, s in enumerate(sets)]
    return MixedSteps(
        [(one, one.keep(texts(n), 256)) for one, n in zip(datasets, sizes, strict=True)], weights, batch, seed, **how
    )


def test_quotas_keep_to_the_weights_after_every_step():
    for weights, batch in (((0.7, 0.3), 10), ((1, 1, 1), 32), ((0.01, 0.5, 0.49), 7), ((5,), 3)):
        quotas, total = Quotas([w / sum(weights) for w in weights], batch), sum(weights)
        counts = [quotas.before(step) for step in range(200)]
        for step, found in enumerate(counts):
            assert sum(found) == step * batch
            assert all(abs(n - w / total * step * batch) < len(weights) for n, w in zip(found, weights, strict=True))
        assert all(a <= b for one, two in pairwise(counts) for a, b in zip(one, two, strict=True))
        assert [quotas.before(step) for step in (150, 3, 150)] == [counts[150], counts[3], counts[150]]
    assert Quotas([0.7, 0.3], 10).before(30) == [210, 90]


def test_a_mix_goes_through_each_set_at_its_own_pace(lm):
    mix = mixed(adapted_model(lm), [Set(0), Set(100)], [40, 16], [0.5, 0.5])
    assert mix.per_epoch == 7  # 56 texts by 8
    seen = [Counter(), Counter()]
    for step in range(20):
        batch = mix[step]
        numbers = [int(s.slot.split("/")[0]) for text in batch.texts for s in text if s.slot]
        assert Counter(numbers) == {0: 4, 1: 4} and len(batch) == 8 and batch.count() == batch.targets
        for text in batch.texts:
            (slot,) = (s.slot for s in text if s.slot)
            seen[int(slot[0])][slot] += 1
        rows = batch.features
        assert all(row[0] == int(key[0]) * 100 + int(key[3:]) / 64 for key, row in rows.items())
    assert set(seen[0].values()) == {4} and len(seen[0]) == 20  # 80 of 40 texts: two of each medium's, twice
    assert set(seen[1].values()) == {10} and len(seen[1]) == 8
    by_size = mixed(adapted_model(lm), [Set(0), Set(100)], [40, 16])
    assert by_size.shares == [40 / 56, 16 / 56]
    whole = Counter(s.slot for step in range(7) for text in by_size[step].texts for s in text if s.slot)
    assert set(whole.values()) == {2} and len(whole) == 28  # by size, an epoch shows every text once


def test_a_step_of_a_mix_is_the_same_whatever_was_asked_before(lm):
    def said(batch):
        return batch.texts, batch.keys, torch.cat(batch.rows).tolist(), batch.whole, batch.draw

    sets = [Set(0), Set(100)]
    mix = mixed(adapted_model(lm), sets, [30, 50], [0.3, 0.7])
    forward = [said(mix[step]) for step in range(25)]
    for step in (24, 3, 11, 0):
        assert said(mix[step]) == forward[step] == said(mixed(adapted_model(lm), sets, [30, 50], [0.3, 0.7])[step])
    assert said(mixed(adapted_model(lm), sets, [30, 50], [0.3, 0.7], seed=1)[3]) != forward[3]
    assert said(mixed(adapted_model(lm), sets, [30, 50], [0.4, 0.6])[3]) != forward[3]
    for step in (0, 9):
        shares = [mix.share(step, rank, 3) for rank in range(3)]
        assert [text for share in shares for text in share.texts] == forward[step][0]
        assert all(share.whole == forward[step][3] and share.draw == forward[step][4] for share in shares)
        assert sum(share.targets for share in shares) == forward[step][3][1]


class Views(Set):
    """Each view of a medium is another number."""

    def read_many(self, keys, kind, views=None):
        return super().read_many(keys, kind) + torch.tensor(views or [0] * len(keys))[:, None]


def test_a_medium_has_one_view_in_a_step_whoever_reads_it(lm):
    """Also where a small set comes around several times in a step."""
    mix, seen = mixed(adapted_model(lm), [Views(0, views=5), Set(100)], [4, 30], [0.6, 0.4], batch=16), set()
    for step in range(12):
        whole = mix[step].features
        assert sum(len(mix.share(step, rank, 3)) for rank in range(3)) == 16
        for rank in range(3):
            assert all(torch.equal(row, whole[key]) for key, row in mix.share(step, rank, 3).features.items())
        seen.add(int(whole["0/m0"][0]))
    assert len(seen) > 2


def test_two_modalities_are_trained_at_once_each_by_its_own_texts(lm):
    """The gradient of each projector in a mixed step is that of its own texts, over the whole step's tokens."""
    parts = {"image": adapted_model(lm, 6, "image", soft=2), "audio": adapted_model(lm, 5, "audio")}
    model = ComposedModel(parts)
    sets = {"image": Set(0, 6), "audio": Set(1, 5)}
    datasets = {
        m: TextFeatureDataset(sets[m], one.prompt, one.adapter, f"{i}/", m) for i, (m, one) in enumerate(parts.items())
    }
    indexes = [(datasets["image"], datasets["image"].keep(texts(20, alone=4), 256)),
            (datasets["audio"], datasets["audio"].keep(texts(12), 256))]  # fmt: skip
    batch = MixedSteps(indexes, [1, 1], 16, 0)[1]
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for micro in (16, 3):
        loss, _, _ = take_step(model, optimizer, scaler, batch, micro, clip=0)
        grads = {name: p.grad.clone() for name, p in model.trained().items()}
        total = 0.0
        for modality, alone in parts.items():
            own = [text for text in batch.texts if any((s.slot or "").startswith(modality) for s in text)]
            given = {key: row for key, row in batch.features.items() if key.startswith(modality)}
            summed, count = ComposedModel({modality: alone}).loss(own, given, batch.draw)
            (want,) = (torch.autograd.grad(summed / batch.targets, list(alone.adapter.parameters())),)
            total += summed.item() / batch.targets
            for (name, _), grad in zip(alone.adapter.named_parameters(), want, strict=True):
                torch.testing.assert_close(grads[f"{modality}.{name}"], grad, rtol=1e-4, atol=1e-6)
            assert count < batch.targets and all(grad.abs().sum() > 0 for grad in want)
        assert loss == pytest.approx(total, abs=1e-5)


def test_features_are_named_with_weights_or_without():
    assert named_sets("features/a") == {"features/a": None} == named_sets(["features/a"])
    assert named_sets(["a=0.7", "b=3"]) == {"a": 0.7, "b": 3.0} and named_sets(["a", "x=y"]) == {"a": None, "x=y": None}
    for given, says in (
        (["a=0.7", "b"], "every set a weight"),
        (["a=0", "b=1"], "above 0"),
        (["a=nan", "b=1"], "above 0"),
        (["a=1", "a=2"], "a twice"),
    ):
        with pytest.raises(RunError, match=says):
            named_sets(given)
