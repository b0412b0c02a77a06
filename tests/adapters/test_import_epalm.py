"""eP-ALM's released checkpoints: read without running anything, and saying what the released code says."""

import collections
import json
import sys
from dataclasses import replace

import numpy
import pytest
import tiny
import torch
import toy_sets
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.io.checkpoint import load_adapter
from periscope.adapters.io.import_epalm import import_released, read_released
from periscope.adapters.lm.injection import Injection, Injector, LayerMap
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template
from periscope.console import run
from periscope.errors import AdapterError

DEPTH, WIDTH, BLOCKS, PROMPTS = 15, 12, 6, 10
START, END = 2, 14  # the last 13 layers without the very last
CAPTION = [{"role": "assistant", "content": "a red circle and a small blue star"}]


@pytest.fixture(scope="module", params=["opt", "opt-350m"])
def opt(request, tmp_path_factory):
    """A tiny OPT, deep enough for six blocks; as OPT-350M its word embeddings are narrower than its layers."""
    folder = tmp_path_factory.mktemp("lm") / request.param
    return load_language_model(str(tiny.save_language_model(request.param, folder, num_hidden_layers=DEPTH)))


def released(lm, maps: int = BLOCKS, mlp: bool = True) -> dict:
    """What eP-ALM's trainer saves: the layout of its released files, with random numbers."""
    torch.manual_seed(1)
    d, e = lm.layer_size, lm.hidden_size
    state = collections.OrderedDict()
    for i in range(maps):
        state[f"connector.{i}.weight"], state[f"connector.{i}.bias"] = torch.randn(d, WIDTH), torch.randn(d)
    state["prompt_module.prefix_embedding.0.weight"] = torch.randn(PROMPTS, e)
    for i in (1, 3) if mlp else ():
        state[f"prompt_module.prefix_embedding.{i}.weight"] = torch.randn(e, e) * e**-0.5
        state[f"prompt_module.prefix_embedding.{i}.bias"] = torch.randn(e)
    moments = {0: {"step": 3, "exp_avg": torch.zeros(d, WIDTH)}}
    return {
        "model": state,
        "optimizer": {"state": moments, "param_groups": [{"lr": 2e-5, "params": [0]}]},
        "lr_scheduler": {"base_values": [2e-5]},
        "config": {"injected_hidden_states": 6, "start_layer_idx": 19, "end_layer_idx": 31, "prompt_len": 10},
        "epoch": 7,
        "best_valid": numpy.float64(1.02),
        "best_epoch": 6,
    }


@torch.no_grad()
def original(lm, state: dict, ids: list[int], blocks: torch.Tensor) -> torch.Tensor:
    """The released model's forward for one text, from its description: logits `(text, vocabulary)`.

    `ids` with the begin-of-text token; `blocks` `(6, width)`, the CLS of the encoder's last blocks.
    """
    decoder = lm.model.model.decoder
    prompt = state["prompt_module.prefix_embedding.0.weight"]
    if "prompt_module.prefix_embedding.1.weight" in state:
        layer = [[state[f"prompt_module.prefix_embedding.{i}.{part}"] for part in ("weight", "bias")] for i in (1, 3)]
        prompt = functional.linear(torch.tanh(functional.linear(prompt, *layer[0])), *layer[1])
    words = decoder.embed_tokens(torch.tensor(ids))
    if decoder.project_in is not None:
        prompt, words = decoder.project_in(prompt), decoder.project_in(words)
    positions = decoder.embed_positions.weight[2 : 2 + len(ids)]
    hidden = torch.cat([prompt, words + positions])[None]
    length = hidden.shape[1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    linears = [(state[key], state[key.replace("weight", "bias")]) for key in state if key.endswith("weight")
               and key.startswith("connector")]  # fmt: skip
    for number, layer in enumerate(decoder.layers):
        if START <= number < END:
            block = (number - START) // ((END - START) // BLOCKS)
            row = functional.linear(blocks[block], *linears[block % len(linears)])[None, None]
            if number == START:
                hidden, mask = torch.cat([row, hidden], 1), functional.pad(mask, (1, 0, 1, 0))
            else:
                hidden = torch.cat([row, hidden[:, 1:]], 1)
        hidden = layer(hidden, attention_mask=mask[None, None])
    if decoder.final_layer_norm is not None:
        hidden = decoder.final_layer_norm(hidden)
    if decoder.project_out is not None:
        hidden = decoder.project_out(hidden)
    return lm.model.lm_head(hidden)[0, 1 + PROMPTS :]


@torch.no_grad()
def ours(model: AdaptedModel, turns: list[dict], blocks: torch.Tensor) -> torch.Tensor:
    segments = model.prompt.segments(turns, ["a"], soft_prompt=True)
    count = sum(len(part.ids) for part in segments)
    batch, injected = model._splice([segments], model.slots([segments], {"a": blocks}))
    with injected:
        return model.lm.model(**model._inputs(batch)).logits[0, -count:]


def adapted(lm, adapter, template) -> AdaptedModel:
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, template))


@pytest.mark.parametrize("maps, mlp", [(6, True), (6, False), (1, False)])
def test_an_imported_checkpoint_says_what_the_released_code_says(opt, maps, mlp, tmp_path):
    whole = released(opt, maps, mlp)
    torch.save(whole, tmp_path / "x.pth")
    adapter, template = import_released(read_released(tmp_path / "x.pth"), opt)
    assert adapter.spec == ("epalm" if maps == 6 else "epalm-shared")
    assert adapter.injection == Injection(opt.layer_size, START, END, compat=True)
    model = adapted(opt, adapter, template)
    ids = [*opt.tokenizer("a red circle and a small blue star").input_ids, opt.tokenizer.eos_token_id]
    torch.manual_seed(3)
    blocks = torch.randn(BLOCKS, WIDTH)
    want, found = original(opt, whole["model"], ids, blocks), ours(model, CAPTION, blocks)
    assert found.shape == want.shape and (found - want).abs().max() <= 1e-4

    def missed(**how) -> float:
        """How far a nearly right adapter is off."""
        form = {"adapter": adapter, "template": template, "blocks": blocks, **how}
        return (ours(adapted(opt, form["adapter"], form["template"]), CAPTION, form["blocks"]) - want).abs().max()

    causal, _ = import_released(read_released(tmp_path / "x.pth"), opt)
    causal.injection = replace(causal.injection, compat=False)
    early, _ = import_released(read_released(tmp_path / "x.pth"), opt, (START - 1, END))
    late, _ = import_released(read_released(tmp_path / "x.pth"), opt, (START, END + 1))
    unfolded = adapted(opt, *import_released(read_released(tmp_path / "x.pth"), opt))
    wrong = {
        "nothing sees what comes later": missed(adapter=causal),
        "the prompt after the begin-of-text token": missed(template=Template(delimiters=("", ""))),
        "from a layer earlier on": missed(adapter=early),
        "in the last layer too": missed(adapter=late),
        "the blocks backwards": missed(blocks=blocks.flip(0)),
    }
    if mlp:
        with torch.no_grad():
            embedding = whole["model"]["prompt_module.prefix_embedding.0.weight"]
            unfolded.adapter.soft_prompt.vectors.copy_(embedding / adapter.soft_prompt.scale)
        wrong["the prompt without its MLP"] = (ours(unfolded, CAPTION, blocks) - want).abs().max()
    with pytest.MonkeyPatch.context() as patch:  # the prompt's rows counted, as elsewhere
        patch.setattr(Injector, "_unposition", lambda self, injected, texts, module, args, output: output)
        wrong["a prompt with positions"] = (ours(adapted(opt, adapter, template), CAPTION, blocks) - want).abs().max()
    assert all(miss > 1e-3 for miss in wrong.values()), wrong


def test_it_answers_as_the_released_code_does(opt, tmp_path):
    """Which reads the whole text again for every word."""
    whole = released(opt)
    torch.save(whole, tmp_path / "x.pth")
    model = adapted(opt, *import_released(read_released(tmp_path / "x.pth"), opt))
    torch.manual_seed(3)
    blocks = torch.randn(2, BLOCKS, WIDTH)
    turns = [{"role": "user", "content": "the lazy dog"}]
    prompt = model.prompt.segments(turns, ["a"], answer=False, soft_prompt=True)
    for medium in blocks:
        ids = [token for part in prompt for token in part.ids]
        for _ in range(6):
            ids.append(original(opt, whole["model"], ids, medium)[-1].argmax().item())
        said = model._generate_uncached([prompt], model.slots([prompt], {"a": medium}), 6)
        assert said == [ids[-6:]]
        assert model.generate([prompt], {"a": medium}, 6) == [opt.tokenizer.decode(said[0]).strip()]
        assert "".join(model.stream(prompt, {"a": medium}, 6)) == opt.tokenizer.decode(said[0]).strip()
    with pytest.raises(AdapterError, match="greedy, searched with beams or drawn; leave out repetition_penalty"):
        model.generate([prompt], {"a": medium}, 6, repetition_penalty=1.5)
    with pytest.raises(AdapterError, match="leave out do_sample"):
        model.generate([prompt], {"a": medium}, 6, do_sample=True, num_beams=2)
    likeliest = model.generate([prompt], {"a": medium}, 6)
    assert model.generate([prompt], {"a": medium}, 6, **Decoding(6, 2.0, top_k=1).arguments()) == likeliest
    drawn = {model.generate([prompt], {"a": medium}, 6, **Decoding(6, 2.0, top_k=50).arguments())[0] for _ in range(4)}
    assert len(drawn) > 1


def test_it_searches_beams_as_the_released_code_does(opt, tmp_path):
    """Which hands transformers' beam search the scores of whole texts: here that of the installed version, on a model
    whose every pass is the released code's.
    """
    whole = released(opt)
    torch.save(whole, tmp_path / "x.pth")
    model = adapted(opt, *import_released(read_released(tmp_path / "x.pth"), opt))
    torch.manual_seed(3)
    blocks = torch.randn(BLOCKS, WIDTH)
    prompt = model.prompt.segments([{"role": "user", "content": "the lazy dog"}], ["a"], answer=False, soft_prompt=True)
    ids = torch.tensor([[token for part in prompt for token in part.ids]])

    def whole_pass(input_ids, **_):
        rows = [original(opt, whole["model"], row.tolist(), blocks)[-1:] for row in input_ids]
        return CausalLMOutput(logits=torch.stack(rows))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opt.model, "forward", whole_pass)
        settings = {"num_beams": 3, "do_sample": False, "use_cache": False, "max_new_tokens": 6}
        settings |= {"eos_token_id": list(model.prompt.stop_ids), "pad_token_id": opt.tokenizer.eos_token_id}
        want = opt.model.generate(ids, **settings)[0, ids.shape[1] :].tolist()
    slots = model.slots([prompt], {"a": blocks})
    (found,) = model._generate_compat([prompt], slots, 6, num_beams=3)
    assert found == want[: len(found)]
    assert found != model._generate_compat([prompt], slots, 6)[0], "or greedy search would do"


def test_the_command_makes_a_folder_that_loads(opt, tmp_path, monkeypatch, capsys):
    from periscope.adapters.__main__ import main

    torch.save(released(opt), tmp_path / "x.pth")
    features = tmp_path / "features"
    features.mkdir()
    manifest = {"modality": "image", "encoder": {"name": "vit-b-augreg"}}
    held = {"layers": {"shape": [BLOCKS, WIDTH], "dtype": "float16", "codec": "fp16"}}
    (features / "manifest.json").write_text(json.dumps(manifest | {"features": held}))
    arguments = ["adapters", "import-epalm", str(tmp_path / "x.pth"), "--lm", opt.name, "--features", str(features)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out")])
    main()
    said = capsys.readouterr().out
    assert "injected into layers 2 to 13" in said and "captions only" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "out", "x.pth"]
    adapter, config = load_adapter(tmp_path / "out")
    assert config.encoder == manifest["encoder"] and config.injection.compat
    blocks = torch.randn(BLOCKS, WIDTH)
    before, _ = import_released(read_released(tmp_path / "x.pth"), opt)
    template = config.template
    again = ours(adapted(opt, adapter, template), CAPTION, blocks)
    assert (again - ours(adapted(opt, before, template), CAPTION, blocks)).abs().max() < 1e-3  # fp16's embedding RMS
    for held, message in (
        ({"layers": {"shape": [BLOCKS, 2 * WIDTH]}}, "reads 6 layers of width 12, and .* holds 6 x 24"),
        ({"pooled": {"shape": [WIDTH]}}, "--kinds layers"),
        (None, "is no feature set"),
    ):
        (features / "manifest.json").write_text(json.dumps(manifest | ({"features": held} if held else {})))
        monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "other")])
        with pytest.raises(AdapterError, match=message):
            main()
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out")])
    (features / "manifest.json").write_text(json.dumps(manifest | {"features": {"layers": {"shape": [6, WIDTH]}}}))
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        run(main)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "out", "x.pth"]


class Trap:
    """Pickles as a call that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(opt, tmp_path):
    sprung = tmp_path / "sprung"
    for place, new in (("config", True), ("best_valid", False)):
        torch.save(released(opt) | {place: Trap(sprung)}, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(AdapterError, match=r"x\.pth isn't read: it asks for .*open, which is no tensor"):
            read_released(tmp_path / "x.pth")
        assert not sprung.exists()
    with torch.serialization.safe_globals([open]):
        torch.load(tmp_path / "x.pth", weights_only=True)
    assert sprung.exists(), "the trap works where it isn't refused"


@pytest.mark.parametrize("new", [True, False])
def test_both_of_torchs_containers_and_what_circulates_are_read(opt, tmp_path, new):
    whole = released(opt, 1, mlp=False)
    for saved in (
        whole,
        whole["model"],
        {"model": {f"module.{key}": value for key, value in whole["model"].items()}},
        {"model": {key: value.half() for key, value in whole["model"].items()}},
    ):
        torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        found = read_released(tmp_path / "x.pth")
        assert (found.width, found.layer_size, len(found.maps)) == (WIDTH, opt.layer_size, 1)
        assert torch.allclose(found.prompt, whole["model"]["prompt_module.prefix_embedding.0.weight"], atol=2e-3)


def test_what_is_no_checkpoint_of_epalm_gets_a_sentence(opt, tmp_path):
    state = released(opt)["model"]

    def refused(saved, message, raw=False):
        (tmp_path / "x.pth").write_bytes(saved) if raw else torch.save(saved, tmp_path / "x.pth")
        with pytest.raises(AdapterError, match=message):
            import_released(read_released(tmp_path / "x.pth"), opt)

    refused(b"not a checkpoint", "isn't read", raw=True)
    refused([1, 2], "no weights by name")
    refused({"model": {"visual.proj": torch.zeros(2)}}, "'visual.proj' isn't in one")
    refused({"model": {}}, "no connector.0.weight")
    refused({"model": {key: value for key, value in state.items() if key != "connector.2.bias"}}, "damaged")
    refused({"model": state | {"connector.1.weight": torch.zeros(3, 3)}}, "don't fit each other")
    refused({"model": {key: value for key, value in state.items() if "connector.5" not in key}}, "has 5 linear maps")
    refused({"model": state | {"connector.1.bias": torch.full((opt.layer_size,), torch.nan)}}, "aren't finite")
    twice = {key: torch.cat([value, value]) for key, value in state.items() if "connector" in key}
    refused({"model": twice}, f"layers of width {2 * opt.layer_size}")
    with pytest.raises(AdapterError, match="doesn't exist"):
        read_released(tmp_path / "nothing.pth")


def test_questions_end_as_the_released_code_ends_them(opt, tmp_path):
    """With the answer mark among the tokenizer's tokens a question reads `...?</a>`."""
    torch.save(released(opt), tmp_path / "x.pth")
    _, template = import_released(read_released(tmp_path / "x.pth"), opt)
    assert template.question == "{}?"
    tokenizer = tiny.FAMILIES["opt"][1]()
    tokenizer.add_tokens("</a>", special_tokens=True)
    marked = type(opt)(**{**vars(opt), "tokenizer": tokenizer})
    _, template = import_released(read_released(tmp_path / "x.pth"), marked)
    turns = [{"role": "user", "content": "What colour is the star"}, {"role": "assistant", "content": "blue"}]
    segments = Prompt(tokenizer, template).segments(turns, ["a"], soft_prompt=True)
    ids = [i for part in segments for i in part.ids]
    assert tokenizer.decode(ids) == "<s>What colour is the star?</a>blue</s>"
    assert segments[0].slot == "soft prompt" and tokenizer.convert_tokens_to_ids("</a>") in ids


def test_the_map_is_the_released_one():
    """Two layers a block, and the prompt's count as the released configurations have it."""
    assert [LayerMap(START, END, BLOCKS).block_of(layer) for layer in range(DEPTH)] == [
        *(None, None, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, None)
    ]


@pytest.mark.slow
def test_an_imported_checkpoint_is_scored_with_beams(tmp_path, monkeypatch):
    from periscope import eval as eval_script
    from periscope.cli import import_

    folder = tiny.save_language_model("opt", tmp_path / "lm", num_hidden_layers=DEPTH)
    torch.save(released(load_language_model(str(folder))), tmp_path / "x.pth")
    monkeypatch.setitem(toy_sets.FEATURES, "layers", {"shape": [BLOCKS, WIDTH], "dtype": "float16"})
    toy_sets.make(tmp_path / "set", range(30), {"layers": toy_sets.FEATURES["layers"]})
    monkeypatch.chdir(tmp_path)
    for script, *arguments in (
        (import_, "epalm", "x.pth", "--lm", "lm", "--features", "set", "--out", "released"),
        (eval_script.main, "--run", "released", "--features", "set", "--beams", "3", "--max-new-tokens", "4"),
    ):
        monkeypatch.setattr(sys, "argv", ["periscope", *arguments, *["--device", "cpu"] * (script is not import_)])
        script()
    found = json.loads((tmp_path / "released/eval.json").read_text())
    assert found["finished"] and found["beams"] == 3 and found["n"] > 0 and "shuffled" in found
