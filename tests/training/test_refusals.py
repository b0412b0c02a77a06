"""What train.py refuses before it loads a model."""

import pytest
from script_runs import here

from periscope.errors import RunError
from periscope.training.models.language_model_holder import LanguageModelHolder

TRAIN = ("--features", "features/photos", "--lm", "lm", "--steps", "1", "--batch", "8")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--adapter", "none"), "--adapter none alone leaves nothing to train; give it a --soft-prompt"),
        (("--adapter", "none", "--warm-start", "60"), "--warm-start needs an adapter whose tokens .* not none"),
        (("--adapter", "none", "--soft-prompt", "2", "--warm-start", "60"), "--warm-start needs an adapter"),
        (("--adapter", "none", "--soft-prompt", "2", "--start-words", "a"), "--start-words needs an adapter"),
        (("--adapter", "mlp2", "--soft-prompt-mlp"), "--soft-prompt-mlp needs a --soft-prompt"),
        (("--adapter", "mlp2", "--lr", "inf"), "--lr is inf; it must be at most 10"),
    ],
)
def test_contradictions_are_refused_before_a_model_is_loaded(options, sentence, home, monkeypatch, capsys):
    monkeypatch.setattr(LanguageModelHolder, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(RunError, match=sentence):
        here(home, monkeypatch, capsys, "train.py", *TRAIN, *options)


def test_a_set_with_a_weight_or_an_equals_sign_is_found(home, monkeypatch, capsys):
    for name in ("plain", "lr=1e-3"):
        if not (home / name).exists():
            (home / name).symlink_to(home / "features" / "photos")
        said = here(
            home,
            monkeypatch,
            capsys,
            "train.py",
            "--features",
            name,
            *TRAIN[2:],
            "--adapter",
            "mlp2",
            "--name",
            f"w-{name}",
        )
        assert "done" in said
