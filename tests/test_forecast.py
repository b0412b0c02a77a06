"""`periscope plan`: sizes as published, fits as a training's memory plan counts them, a sentence for each mistake."""

import re
from pathlib import Path

import pytest

from periscope import cli, forecast
from periscope.errors import RunError
from periscope.forecast import CARDS, Forecast, page
from periscope.training.config import PlanConfig

ROOT = Path(__file__).parents[1]
SMALL, LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "lmsys/vicuna-7b-v1.5"


def plan(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["periscope", "plan", *arguments])
    cli.main()
    return capsys.readouterr().out


def test_it_says_what_is_downloaded_and_stored(monkeypatch, capsys):
    out = plan(monkeypatch, capsys, "--lm", SMALL, "--media", "1000", "--texts", "5000", "--words", "48")
    assert "134,515,008 weights; download about 269.0 MB" in out and "siglip2-b, SigLIP 2 ViT-B/16" in out
    assert "pooled 4.1 MB" in out and "16 tokens a medium" in out
    assert "5,000 texts of 64 tokens, 48 of them words" in out
    assert all(card.name in out for card in CARDS) and "not measured" in out
    assert (
        "can be exported to: vLLM\nnot to transformers: adapter mlp16: only mlp and linear are exported; output norm:"
        in out
    )
    assert (
        "to change that, give --for transformers or --for llama.cpp to both periscope precompute and periscope train"
        in out
    )


def test_what_fits_grows_with_the_card_and_shrinks_with_the_model():
    small, large = (Forecast(PlanConfig("clip-l-336", "mlp", lm)) for lm in (SMALL, LARGE))
    by_memory = sorted(CARDS, key=lambda card: card.memory)
    room = [small.on(card).micro_batch for card in by_memory]
    assert room == sorted(room) and room[0] > large.on(by_memory[0]).micro_batch
    assert large.on(by_memory[0]).precision == "4bit" and large.on(by_memory[-1]).precision == "fp16"
    for card in CARDS:
        fit = large.on(card)
        used = fit.memory.weights + fit.memory.adapter + fit.micro_batch * fit.memory.per_text(large.length)
        assert fit.micro_batch == 0 or used <= card.memory * forecast.GIB - forecast.RESERVED
    fast, slow = (next(card for card in CARDS if card.name == name) for name in ("RTX 4090", "RTX 3090"))
    assert small.epoch_seconds(fast, small.on(fast)) < small.epoch_seconds(slow, small.on(slow))


def test_texts_of_a_medium_are_counted_in_one_pass_and_a_prefix_once():
    """Five captions of 40 words, 10 of them before the picture: 576 + 5 x 30 positions a picture, not 5 x 616."""
    apart, shared = (
        Forecast(PlanConfig("clip-l-336", "mlp", SMALL, media=100, texts=texts, words=40, prefix=10))
        for texts in (100, 500)
    )
    assert apart.shape(3)[:3] == (3, 606, 10) and shared.shape(10)[:3] == (2, 726, 10)
    card, fit = CARDS[0], shared.on(CARDS[0])
    times = [seen.epoch_seconds(card, fit) for seen in (apart, shared)]
    assert times[1] / times[0] == pytest.approx(726 / 606)
    assert fit.memory.kept(shared.shape(10)) < 0.3 * fit.memory.kept(apart.shape(10))
    assert shared._shared() == ", 10 computed once in all; the 5 texts of a medium share a pass over it"
    with pytest.raises(RunError, match="--prefix 40"):
        Forecast(PlanConfig("clip-l-336", "mlp", SMALL, words=40, prefix=40))


def test_a_step_costs_four_operations_a_weight():
    """Two forward and two backward for each weight but the table of words, and token (Kaplan et al. 2020, without the
    gradients of frozen weights)."""
    seen = Forecast(PlanConfig("siglip2-b", "mlp16", SMALL, media=100, words=48))
    weights = 134_515_008 - 49_152 * 576
    card = CARDS[4]
    wanted = 100 * 64 * weights * 4 / (card.rate * forecast.REACHED)
    assert seen.epoch_seconds(card, seen.on(card)) == pytest.approx(wanted)


def test_an_adapter_into_inner_layers_is_counted_too(monkeypatch, capsys):
    out = plan(monkeypatch, capsys, "--encoder", "clip-b-16", "--adapter", "epalm", "--lm", SMALL)
    assert "epalm reads layers" in out
    assert "not to vLLM: injection into inner layers" in out and "class token" in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--encoder", "siglip3"), "--encoder siglip3: plan counts encoders with short names; nearest: siglip"),
        (("--adapter", "epalm"), "epalm reads layers, which this encoder doesn't give; it gives pooled, patches"),
        (("--lm", "no/such/folder"), "; known without a network: facebook/opt-350m, "),
        (("--adapter", "mpl16"), "mpl16"),
        (("--media", "0"), "--media is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_mistakes_get_a_sentence(monkeypatch, capsys, arguments, why):
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, capsys, *arguments)
    said = str(end.value.code)  # what is printed to stderr, with status 1
    assert said.startswith("error: ") and why in said and "\n" not in said


def test_the_page_is_made_by_its_script():
    """Memory and what fits follow transformers' version; the rest is equal."""
    figures = re.compile(r"\| (\d+|fp16|8bit|4bit) \| .*")
    written, made = ((figures.sub("", text)) for text in ((ROOT / "docs/hardware.md").read_text(), page()))
    assert written == made, "run python -m periscope.forecast > docs/hardware.md"
    assert "doesn't fit" not in made
