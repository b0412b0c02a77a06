"""The adapter and the frozen language model together: the loss of a batch, and answers."""

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig

from periscope.adapters.lm.cross_entropy import cross_entropy
from periscope.adapters.lm.injection import InjectedRows, Injector, LayerMap
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import lora_parameters
from periscope.adapters.projectors import FeatureShape, build_projector, find_projector
from periscope.adapters.prompting.prompt import SOFT_PROMPT, SOFT_PROMPT_END, Prompt, Segment, soft_slots
from periscope.adapters.shared_prefix import (
    SharedPrefixBatch,
    can_share,
    group_by_prefix,
    pack_shared_prefix,
    sharing_pays,
)
from periscope.adapters.soft_prompt import SoftPrompt
from periscope.adapters.splice import IGNORED, SplicedBatch, positions_of, splice
from periscope.errors import AdapterError

Texts = Sequence[Sequence[Segment]]
Features = Mapping[str, torch.Tensor]


class Adapter(nn.Module):
    """What is trained: a projector and, where `soft_prompt` is above 0, a soft prompt of that length. All fp32.

    With `output_norm` each projected token is brought to unit RMS (Zhang & Sennrich 2019, arXiv 1910.07467) and
    then to the word embeddings' RMS times a learned gain, started at 1 and held as its logarithm: word embeddings
    are small (RMS 0.003 to 0.02 in real models, so one AdamW step could otherwise move a token tens of times its
    size) and the ratio then stays near 1. Without it the form is the paper's plain one, and only its start is
    scaled, by `match_scale`.

    A projector that injects gives vectors for inner layers instead, in the paper's plain form always. `injection` then
    says where: {"layer_size", "start", "end", "compat"}, see `adapters.injection`.
    """

    def __init__(
        self,
        spec: str,
        features: FeatureShape,
        hidden_size: int,
        embedding_rms: float,
        soft_prompt: int = 0,
        output_norm: bool = True,
        projector_hidden: int = 0,
        projector_layers: int = 0,
        injection: dict | None = None,
        soft_prompt_mlp: bool = False,
    ):
        super().__init__()
        self.spec, self.features, self.hidden_size = spec, features, hidden_size
        self.injects = getattr(find_projector(spec)[0].module, "injects", False)
        if self.injects and injection is None:
            raise AdapterError(f"{spec} gives vectors for inner layers, and nothing says which")
        self.injection = injection if self.injects else None
        self.projector_hidden, self.projector_layers = projector_hidden, projector_layers
        width = self.injection["layer_size"] if self.injects else hidden_size
        self.projector = build_projector(spec, features, width, projector_hidden, projector_layers)
        if not self.tokens and not soft_prompt:
            raise AdapterError(f"--adapter {spec} alone leaves nothing to train; give it a --soft-prompt")
        output_norm = bool(output_norm and not self.injects and self.tokens)
        self.embedding_rms, self.output_norm = embedding_rms, output_norm
        self.log_gain = nn.Parameter(torch.zeros(())) if output_norm else None
        if soft_prompt_mlp and not soft_prompt:
            raise AdapterError("--soft-prompt-mlp needs a --soft-prompt")
        self.soft_prompt = None
        if soft_prompt:
            self.soft_prompt = SoftPrompt(soft_prompt, hidden_size, embedding_rms, soft_prompt_mlp)

    @property
    def tokens(self) -> int:
        """How many vectors stand for one medium."""
        return self.projector.tokens

    @property
    def soft_tokens(self) -> int:
        return len(self.soft_prompt.vectors) if self.soft_prompt is not None else 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project `(batch, width)` or `(batch, tokens, width)` features to `(batch, tokens, hidden_size)`, fp32; for an
        adapter that injects, `(batch, blocks, width)` to `(batch, blocks, layer_size)`.
        """
        tokens = self.projector(features.float())
        if self.log_gain is None:
            return tokens
        return functional.rms_norm(tokens, tokens.shape[-1:], eps=1e-6) * (self.log_gain.exp() * self.embedding_rms)

    @torch.no_grad()
    def match_scale(self, features: torch.Tensor) -> float:
        """Rescale the projector's last layer so that these features' tokens have the embeddings' RMS; return by how
        much.

        Done once, before the first step. With `output_norm`, or without features, there is nothing to do.
        """
        if self.log_gain is not None or self.injects or not self.tokens or not len(features):
            return 1.0
        rms = self(features).pow(2).mean(-1).sqrt().median().item()
        factor = self.embedding_rms / max(rms, 1e-12)
        for parameter in self.projector.last.parameters():
            parameter.mul_(factor)
        return factor

    @torch.no_grad()
    def start_from(self, rows: torch.Tensor, features: torch.Tensor, share: float = 0.1) -> None:
        """Start the tokens from words: embeddings `(words, hidden_size)`, repeated or cut to the number of tokens.

        The words go into the last layer's bias, and its weight is scaled so that what these features add has `share`
        of the words' RMS. Tokens that start alike can stay alike: each then carries a blur of the whole picture, and
        which word belongs to which is lost. Different words, which the language model already looks up by, part them.
        (The same start is common for soft prompts: Lester et al. 2021, arXiv 2104.08691.)
        Raises AdapterError for a projector whose tokens share one bias, and when there are no words.
        """
        if not len(rows):
            raise AdapterError("--start-words holds nothing that the tokenizer makes a token of; leave it out")
        last = self.projector.last
        if last.bias is None or last.out_features != self.tokens * self.hidden_size:
            raise AdapterError(
                f"--start-words needs an adapter whose tokens have a bias each, as mlp16; not {self.spec}"
            )
        if self.log_gain is not None:
            rows = rows / self.embedding_rms
        rows = rows.to(last.bias)[torch.arange(self.tokens) % len(rows)]
        moved = self.projector(features.float()) - last.bias.unflatten(0, (self.tokens, -1))
        last.weight.mul_(share * rows.square().mean().sqrt() / moved.square().mean().sqrt().clamp(min=1e-12))
        last.bias.copy_(rows.flatten())


class AdaptedModel(nn.Module):
    """A frozen language model that reads through an adapter.

    `texts` below are lists of segments from `Prompt`; `features` maps each medium that they name to its features,
    `(width,)` or `(tokens, width)`, any float dtype. A medium that several texts name is projected once.

    With `token_noise` above 0, `loss` adds Gaussian noise of that share of each projected token's RMS, in the manner of
    NEFTune (Jain et al. 2023, arXiv 2310.05914): a projector can otherwise find tokens that make the model say the
    right caption and mean nothing to it beyond. `text_losses` and `generate` never add any.

    `loss_mean` is what a step's loss is the mean of: each "token" counts alike, or each "sample" (a text: the mean of
    its tokens' losses), as for Mamba-VL and Pythia-VL.
    """

    def __init__(
        self, lm: LanguageModel, adapter: Adapter, prompt: Prompt, token_noise: float = 0.0, loss_mean: str = "token"
    ):
        super().__init__()
        self.lm, self.adapter, self.prompt, self.token_noise = lm, adapter, prompt, token_noise
        self.loss_mean = loss_mean
        self._takes_positions = "position_ids" in inspect.signature(lm.model.forward).parameters
        self._injector = None
        self._shares = can_share(lm) and not adapter.injects
        if adapter.injects:
            where = adapter.injection
            layers = LayerMap(where["start"], where["end"], adapter.projector.blocks)
            self._injector = Injector(lm, layers, where["compat"])

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name and always in one order: the adapter's parameters, then those of the language
        model's LoRA, if it has one, as "lora.NAME".
        """
        maps = lora_parameters(self.lm.model).items() if self.lm.lora else ()
        return dict(self.adapter.named_parameters()) | {f"lora.{name}": parameter for name, parameter in maps}

    def slots(
        self, texts: Texts, features: Features, noise: float = 0.0, draw: str | None = None
    ) -> dict[str, torch.Tensor]:
        """The vectors `(tokens, hidden_size)` in fp32 for every medium that `texts` name, and for the soft prompt; for
        an adapter that injects, a medium's `(blocks, layer_size)`.

        `noise`, a share of each medium token's RMS, is drawn on the CPU, so that a resumed run draws the same. With
        `draw` a medium's is a function of that and its name, however the step is cut.
        """
        own = {None, SOFT_PROMPT, SOFT_PROMPT_END}
        named = dict.fromkeys(s.slot for text in texts for s in text if s.slot not in own)
        filled = {}
        if self.adapter.soft_prompt is not None:
            counts = soft_slots(self.adapter.soft_tokens, self.prompt.template)
            filled = dict(zip(counts, self.adapter.soft_prompt().split(list(counts.values())), strict=True))
        if named:
            device = next(self.adapter.parameters()).device
            read = torch.stack([features[name] for name in named]).to(device, non_blocking=True)
            tokens = self.adapter(read)
            if noise:
                rms = tokens.detach().pow(2).mean(-1, keepdim=True).sqrt()
                drawn = torch.randn(tokens.shape) if draw is None else _normal(draw, named, tokens.shape[1:])
                tokens = tokens + noise * rms * drawn.to(device, non_blocking=True)
            filled |= zip(named, tokens, strict=True)
        return filled

    def loss(self, texts: Texts, features: Features, draw: str | None = None) -> tuple[torch.Tensor, int]:
        """Cross-entropy summed over the target tokens of a micro-batch, in fp32, and their number; or summed over its
        texts, each the mean of its tokens, and their number.

        A step divides the sum of these by the sum of the numbers, so how it is cut into micro-batches changes nothing
        (but the draws of `token_noise`, unless `draw` names the step).
        Logits are computed at the labels' positions only, by the model's own head (its scale and softcap included).
        """
        per_token = self._token_losses(texts, features, self.token_noise, draw)
        if self.loss_mean == "token":
            return per_token.sum(), len(per_token)
        counts = torch.tensor([_targets(text) for text in texts], device=per_token.device)
        return (per_token / counts.repeat_interleave(counts)).sum(), len(texts)

    @torch.no_grad()
    def text_losses(self, texts: Texts, features: Features) -> list[tuple[float, int]]:
        """For each text its summed cross-entropy and its number of target tokens."""
        counts = [_targets(text) for text in texts]
        return [(part.sum().item(), len(part)) for part in self._token_losses(texts, features).split(counts)]

    def _token_losses(
        self, texts: Texts, features: Features, noise: float = 0.0, draw: str | None = None
    ) -> torch.Tensor:
        slots = self.slots(texts, features, noise, draw)
        if self._shares:
            groups = group_by_prefix(texts)
            if sharing_pays(texts, groups, {name: len(vectors) for name, vectors in slots.items()}):
                return self._tree_losses(pack_shared_prefix(self.lm, texts, groups, slots))
        batch, injected = self._splice(texts, slots)
        labels = functional.pad(batch.labels, (0, 1), value=IGNORED)[:, 1:]
        wanted = labels != IGNORED
        # Padding stands last, where no word sees it: without a mask attention takes its plain causal kernels.
        given = self._inputs(batch) if self._injector is not None else {"inputs_embeds": batch.inputs_embeds}
        with injected:
            logits = self.lm.model(**given, logits_to_keep=wanted, use_cache=False).logits
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device), labels[wanted])

    def _tree_losses(self, tree: SharedPrefixBatch) -> torch.Tensor:
        given = {name: getattr(tree, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}
        logits = self.lm.model(**given, logits_to_keep=tree.keep, use_cache=False).logits
        return cross_entropy(logits, tree.said, tree.labels)

    def _inputs(self, batch: SplicedBatch) -> dict[str, torch.Tensor]:
        """What the language model takes of a batch, by its names; one without positions isn't given any."""
        given = {"inputs_embeds": batch.inputs_embeds, "attention_mask": batch.attention_mask}
        return given | ({"position_ids": batch.position_ids} if self._takes_positions else {})

    def _splice(
        self, texts: Texts, slots: dict[str, torch.Tensor], **how
    ) -> tuple[SplicedBatch, AbstractContextManager]:
        """The batch, and the context in which the language model must read it: that of the injection, if any.

        A medium that is injected takes one position, which no position is counted for and no mask shows; none in a
        model without masks. As eP-ALM's released code has it (`compat`), the medium stands first and the soft prompt
        isn't counted either.
        """
        if self._injector is None:
            return splice(self.lm, texts, slots, **how), nullcontext()
        media = {name: vectors for name, vectors in slots.items() if name not in (SOFT_PROMPT, SOFT_PROMPT_END)}
        compat = self._injector.compat
        if compat:
            texts = [sorted(text, key=lambda part: part.slot not in media) for text in texts]
        kept = torch.zeros(0 if self._injector.inserts else 1, self.lm.hidden_size)
        batch = splice(self.lm, texts, slots | dict.fromkeys(media, kept), **how)
        found = [slot for slot in batch.slots if slot[0] in media]
        if not found:
            return batch, nullcontext()
        names, rows, places = zip(*found, strict=True)
        if self._injector.inserts and list(rows) != list(range(len(texts))):
            raise AdapterError(f"{self.lm.name} is given a medium inside: each text must have exactly one")
        text, place = (torch.tensor(values, device=self.lm.device) for values in (rows, places))
        placeless = None
        if not self._injector.inserts:
            batch.attention_mask[text, place] = 0
            counted = batch.attention_mask.clone()
            for name, row, at in batch.slots:
                if compat and name not in media:
                    counted[row, at : at + len(slots[name])] = 0
            batch.position_ids = positions_of(counted)
            placeless = counted == 0 if compat else None
        vectors = InjectedRows(torch.stack([media[name] for name in names]).to(self.lm.device), text, place, placeless)
        return batch, self._injector.inject(vectors, len(texts), batch.inputs_embeds.shape[1])

    @torch.no_grad()
    def generate(self, texts: Texts, features: Features, max_new_tokens: int = 64, **decoding) -> list[str]:
        """Answer prompts made with `answer=False`, greedily unless `decoding` (transformers' names) says otherwise.

        Where an injected row sees what comes later (`compat`) each word is found by reading all before it anew, and
        only greedily: no cache holds what that row makes of a new word. Raises AdapterError for other `decoding` there.
        """
        stop, slots = self.prompt.stop_ids, self.slots(texts, features)
        if self._injector is not None and self._injector.compat:
            if decoding:
                raise AdapterError(f"with epalm_compat answers are greedy; leave out {', '.join(decoding)}")
            return self._answers(self._say_anew(texts, slots, max_new_tokens))
        batch, injected = self._splice(texts, slots, side="left", train=False)
        config = GenerationConfig(
            **{"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, **decoding},
            eos_token_id=list(stop),
            pad_token_id=stop[0],
        )
        with injected:
            said = self.lm.model.generate(**self._inputs(batch), generation_config=config)
        return self._answers(said.tolist())

    def _say_anew(self, texts: Texts, slots: dict[str, torch.Tensor], most: int) -> list[list[int]]:
        said = [[] for _ in texts]
        while len(said[0]) < most and not all(set(self.prompt.stop_ids) & set(row) for row in said):
            read = [[*text, Segment(ids=tuple(row))] for text, row in zip(texts, said, strict=True)]
            batch, injected = self._splice(read, slots, side="left", train=False)
            with injected:
                logits = self.lm.model(**self._inputs(batch), logits_to_keep=1, use_cache=False).logits
            for row, token in zip(said, logits[:, -1].argmax(-1).tolist(), strict=True):
                row.append(token)
        return said

    def _answers(self, said: Sequence[Sequence[int]]) -> list[str]:
        """Each row of ids up to the first that ends an answer, as words."""
        answers, stop = [], self.prompt.stop_ids
        for row in said:
            end = next((i for i, token in enumerate(row) if token in stop), len(row))
            answers.append(self.prompt.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
        return answers


def _targets(text: Sequence[Segment]) -> int:
    return sum(len(segment.ids) for segment in text if segment.target)


def _normal(draw: str, names: Iterable[str], shape: torch.Size) -> torch.Tensor:
    """For each name, normal numbers of that shape that are a function of `draw` and the name alone."""
    seeds = [int.from_bytes(hashlib.sha256(f"{draw}/{name}".encode()).digest()[:8], "little") for name in names]
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed >> 1)) for seed in seeds])
