"""The adapter, and the frozen language model that reads through it: the loss of a batch, and generation."""

import hashlib
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig

from periscope.adapters.constant_prefix import leading_ids, without_leading
from periscope.adapters.generation.beam_search import Scorer, search_beams
from periscope.adapters.generation.decoding import greedy, token_chooser
from periscope.adapters.generation.streaming import AnswerEnd, TextPieces, TokenQueue, stream_text
from periscope.adapters.lm.cross_entropy import cross_entropy
from periscope.adapters.lm.injection import InjectedVectors, Injection, Injector, LayerMap
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import lora_parameters
from periscope.adapters.lm.prefix_cache import PrefixCache, PrefixCaches, cache_argument, growing_cache, words_cache
from periscope.adapters.lm.runtimes import passes
from periscope.adapters.packing import Ids, SharedPass, pack_rows
from periscope.adapters.projectors import FeatureShape, build_projector, find_projector
from periscope.adapters.projectors.layers import LayerLinears
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import SOFT_PROMPT, SOFT_PROMPT_END, Segment
from periscope.adapters.prompting.template import soft_slots
from periscope.adapters.shared_prefix import (
    FORWARD_ONLY,
    SharedPrefixBatch,
    can_share,
    causal_masks,
    choose_pass,
    pack_shared_prefix,
    why_no_prefix,
    why_no_words,
)
from periscope.adapters.soft_prompt import SoftPrompt
from periscope.adapters.splice import IGNORED, SplicedBatch, length_of, mix, positions_of, splice, target_places
from periscope.device import rules_of
from periscope.errors import AdapterError

Texts = Sequence[Sequence[Segment]]
Features = Mapping[str, torch.Tensor]


class Adapter(nn.Module):
    """What is trained, all in fp32: a projector and, if `soft_prompt` is above 0, a soft prompt of that length.

    With `output_norm` each projected token is normalised to unit RMS (Zhang & Sennrich 2019, arXiv 1910.07467) and
    scaled to the word embeddings' RMS times a learned scale, initially 1 and stored as its logarithm `log_gain`. Word
    embeddings are small (RMS 0.003 to 0.02 in real models), so one AdamW step could otherwise move a token by tens of
    times its size; with the norm the ratio stays near 1. Without it the projector is the paper's plain one, and only
    its initialisation is scaled, by `match_scale`.

    A projector that injects gives vectors for inner layers, which are never normalised; `injection` says which layers.
    `embedding_rms` is `LanguageModel.embedding_rms`; `projector_hidden`, `projector_layers` and `projector_frames` are
    as in `build_projector`. `soft_prompt_unit` leaves the soft prompt at unit scale, as eP-ALM does, instead of the
    embeddings'.

    Raises AdapterError for an unknown projector, for options that don't fit it, and when nothing would be trained.
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
        injection: Injection | None = None,
        soft_prompt_mlp: bool = False,
        projector_frames: int = 0,
        soft_prompt_unit: bool = False,
    ):
        super().__init__()
        self.spec, self.features, self.hidden_size = spec, features, hidden_size
        self.injects = find_projector(spec)[0].injects
        if self.injects and injection is None:
            raise AdapterError(f"{spec} gives vectors for inner layers, and nothing says which")
        self.injection = injection if self.injects else None
        self.projector_hidden, self.projector_layers = projector_hidden, projector_layers
        self.projector_frames, self.soft_prompt_unit = projector_frames, soft_prompt_unit
        width = self.injection.layer_size if self.injection else hidden_size
        self.projector = build_projector(spec, features, width, projector_hidden, projector_layers, projector_frames)
        if not self.tokens and not soft_prompt:
            raise AdapterError(f"--adapter {spec} alone leaves nothing to train; give it a --soft-prompt")
        output_norm = bool(output_norm and not self.injects and self.tokens)
        self.embedding_rms, self.output_norm = embedding_rms, output_norm
        self.log_gain = nn.Parameter(torch.zeros(())) if output_norm else None
        if soft_prompt_mlp and not soft_prompt:
            raise AdapterError("--soft-prompt-mlp needs a --soft-prompt")
        self.soft_prompt: SoftPrompt | None = None
        if soft_prompt:
            scale = 1.0 if soft_prompt_unit else embedding_rms
            self.soft_prompt = SoftPrompt(soft_prompt, hidden_size, scale, soft_prompt_mlp)

    @property
    def tokens(self) -> int:
        """Vectors per image, sound or clip."""
        return self.projector.tokens

    @property
    def soft_tokens(self) -> int:
        """Vectors of the soft prompt; 0 without one."""
        return len(self.soft_prompt.vectors) if self.soft_prompt is not None else 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features `(batch, width)` or `(batch, tokens, width)` to `(batch, tokens, hidden_size)` in fp32; for
        an adapter that injects, `(batch, blocks, width)` to `(batch, blocks, layer_size)`.
        """
        tokens = self.projector(features.float())
        if self.log_gain is None:
            return tokens
        return functional.rms_norm(tokens, tokens.shape[-1:], eps=1e-6) * (self.log_gain.exp() * self.embedding_rms)

    @torch.no_grad()
    def match_scale(self, features: torch.Tensor) -> float:
        """Rescale the projector's last layer so that the tokens of these features have the embeddings' RMS.

        Called once, before the first step. Returns the factor, 1.0 when there is nothing to do: with `output_norm`, for
        an adapter that injects, without a last layer, or without features.
        """
        scaled = self.tokens and not isinstance(self.projector.last, nn.Identity)
        if self.log_gain is not None or self.injects or not scaled or not len(features):
            return 1.0
        rms = self(features).pow(2).mean(-1).sqrt().median().item()
        factor = self.embedding_rms / max(rms, 1e-12)
        for parameter in self.projector.last.parameters():
            parameter.mul_(factor)
        return factor

    @torch.no_grad()
    def start_from(self, embeddings: torch.Tensor, features: torch.Tensor, share: float = 0.1) -> None:
        """Initialise the tokens from word embeddings `(words, hidden_size)`, repeated or cut to the number of tokens.

        The embeddings go into the last layer's bias, and its weight is scaled so that what these features add has
        `share` of the embeddings' RMS. Tokens with equal initial values can stay alike: each then carries an average of
        the whole image. Different words, which the language model already attends to differently, break the symmetry.
        (The same initialisation is common for soft prompts: Lester et al. 2021, arXiv 2104.08691.)

        Raises AdapterError for a projector whose tokens share one bias, and when there are no words.
        """
        if not len(embeddings):
            raise AdapterError("--start-words holds nothing that the tokenizer makes a token of; leave it out")
        last = self.projector.last
        size = self.tokens * self.hidden_size
        if not isinstance(last, nn.Linear) or last.out_features != size or last.bias is None:
            raise AdapterError(
                f"--start-words needs an adapter whose tokens have a bias each, such as mlp16; not {self.spec}"
            )
        if self.log_gain is not None:
            embeddings = embeddings / self.embedding_rms
        embeddings = embeddings.to(last.bias)[torch.arange(self.tokens) % len(embeddings)]
        added = self.projector(features.float()) - last.bias.unflatten(0, (self.tokens, -1))
        last.weight.mul_(share * embeddings.square().mean().sqrt() / added.square().mean().sqrt().clamp(min=1e-12))
        last.bias.copy_(embeddings.flatten())


class PassShape(NamedTuple):
    """What a forward pass over texts to train on has.

    rows, length: of positions · before: cached keys before each row · targets: positions whose logits are computed ·
    media: that are projected · masked: whether the rows have masks of their own · words: positions of the passes over
    cached words that have a gradient.
    """

    rows: int
    length: int
    before: int
    targets: int
    media: int
    masked: bool = False
    words: int = 0

    @property
    def positions(self) -> int:
        """Positions of the rows, padding included."""
        return self.rows * self.length

    def __str__(self) -> str:
        behind = f" behind {self.before} cached" if self.before else ""
        rows = f"{self.rows} row{'s' * (self.rows > 1)} of {self.length} positions{behind}"
        return f"at most {rows}, with {self.targets} targets and {self.media} media"


class AdaptedModel(nn.Module):
    """A frozen language model that reads through an adapter.

    `texts` below are lists of segments from `Prompt`. `features` maps each image (sound, clip) that they name to its
    features, `(width,)` or `(tokens, width)` in any float dtype; one that several texts name is projected once.

    With `token_noise` above 0, `loss` adds Gaussian noise with that fraction of each projected token's RMS, in the
    manner of NEFTune (Jain et al. 2023, arXiv 2310.05914): a projector can otherwise find tokens that produce the right
    caption and mean nothing else to the model. `text_losses` and `generate` add none.

    `loss_mean` is what a step's loss averages: every "token" with equal weight, or every "sample" (a text, by the mean
    of its tokens' losses), as Mamba-VL and Pythia-VL do.
    """

    def __init__(
        self, lm: LanguageModel, adapter: Adapter, prompt: Prompt, token_noise: float = 0.0, loss_mean: str = "token"
    ):
        super().__init__()
        self.lm, self.adapter, self.prompt, self.token_noise = lm, adapter, prompt, token_noise
        self.loss_mean = loss_mean
        self._takes_positions = "position_ids" in inspect.signature(lm.model.forward).parameters
        self._can_share = can_share(lm) and not adapter.injects
        self._injector: Injector | None = None
        if adapter.injects and lm.runtime is not None:
            raise AdapterError(
                f"{adapter.spec} injects vectors into inner layers, which {lm.runtime.name} gives no access to; "
                f"leave out --runtime {lm.runtime.name}"
            )
        if adapter.injects and (injection := adapter.injection):
            layers = LayerMap(injection.start, injection.end, cast(LayerLinears, adapter.projector).blocks)
            self._injector = Injector(lm, layers, injection.compat)
        self._prefixes = PrefixCaches(lm)
        self.reuses_words = True  # off to measure what it gains

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, always in the same order: the adapter's, then those of the language model's
        LoRA, if it has one, as "lora.NAME", or its own, if these are trained, as "lm.NAME".
        """
        lora = lora_parameters(self.lm.model) if self.lm.lora else {}
        own = self.lm.own_parameters() if self.lm.trained else {}
        beside = {f"lora.{name}": weight for name, weight in lora.items()}
        return dict(self.adapter.named_parameters()) | beside | {f"lm.{name}": weight for name, weight in own.items()}

    def slots(
        self, texts: Texts, features: Features, noise: float = 0.0, draw: str | None = None
    ) -> dict[str, torch.Tensor]:
        """The vectors of every slot that `texts` name, by its name, in fp32: `(tokens, hidden_size)` for images and the
        soft prompt; `(blocks, layer_size)` for the images of an adapter that injects.

        `noise`, a fraction of each image token's RMS, is drawn on the CPU, so that a resumed run draws the same. With
        `draw` an image's noise is a function of `draw` and its name, however the step is split into micro-batches.
        """
        own = (SOFT_PROMPT, SOFT_PROMPT_END)
        names = list(dict.fromkeys(s.slot for text in texts for s in text if s.slot is not None and s.slot not in own))
        filled: dict[str, torch.Tensor] = {}
        if self.adapter.soft_prompt is not None:
            counts = soft_slots(self.adapter.soft_tokens, self.prompt.template)
            filled = dict(zip(counts, self.adapter.soft_prompt().split(list(counts.values())), strict=True))
        if names:
            device = next(self.adapter.parameters()).device
            pinned = rules_of(device).pinned
            batch = torch.stack([features[name] for name in names]).to(device, non_blocking=pinned)
            tokens = self.adapter(batch)
            if noise:
                rms = tokens.detach().pow(2).mean(-1, keepdim=True).sqrt()
                normal = torch.randn(tokens.shape) if draw is None else _seeded_normal(draw, names, tokens.shape[1:])
                tokens = tokens + noise * rms * normal.to(device, non_blocking=pinned)
            filled |= zip(names, tokens, strict=True)
        return filled

    def loss(self, texts: Texts, features: Features, draw: str | None = None) -> tuple[torch.Tensor, int]:
        """The summed loss of a micro-batch in fp32, and what it is a sum of.

        That is cross-entropy summed over target tokens, and their number; with `loss_mean="sample"`, summed over texts,
        each the mean of its tokens, and their number. A step divides the sum of losses by the sum of numbers, so the
        split into micro-batches changes nothing (except `token_noise`, unless `draw` names the step). Logits are
        computed at the labels' positions only, by the model's own head, its scale and soft cap included.
        """
        per_token = self._token_losses(texts, features, self.token_noise, draw)
        if self.loss_mean == "token":
            return per_token.sum(), len(per_token)
        counts = torch.tensor([_count_targets(text) for text in texts], device=per_token.device)
        return (per_token / counts.repeat_interleave(counts)).sum(), len(texts)

    @torch.no_grad()
    def text_losses(self, texts: Texts, features: Features) -> list[tuple[float, int]]:
        """The summed cross-entropy of each text, and its number of target tokens."""
        counts = [_count_targets(text) for text in texts]
        losses = self._token_losses(texts, features).split(counts)
        return [(loss.sum().item(), len(loss)) for loss in losses]

    def _token_losses(
        self, texts: Texts, features: Features, noise: float = 0.0, draw: str | None = None
    ) -> torch.Tensor:
        """The loss of every target, text by text, `(targets,)` in fp32."""
        slots = self.slots(texts, features, noise, draw)
        if self.lm.runtime is not None:
            return torch.cat(
                [
                    passes.target_losses(self.lm.runtime, mix(self.lm, text, slots), target_places(text, slots))
                    for text in texts
                ]
            )
        texts, prefix = self._take_prefix(texts)
        shared = self._shared_pass(texts, {name: len(vectors) for name, vectors in slots.items()}, _length(prefix))
        if shared:
            packed = pack_shared_prefix(self.lm, len(texts), shared, slots, _length(prefix))
            return self._shared_prefix_losses(packed, self._behind_words(shared.words, packed, prefix))
        batch, injection = self._splice(texts, slots, prefix)
        labels = functional.pad(batch.labels, (0, 1), value=IGNORED)[:, 1:]
        keep = labels != IGNORED
        if self._injector is not None:
            inputs = self._inputs(batch, _length(prefix))
        else:
            inputs = self._causal_inputs(batch, _length(prefix))
        with injection:
            logits = self._logits(inputs, keep, prefix)
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device), labels[keep])

    def _shared_prefix_losses(self, batch: SharedPrefixBatch, prefix: PrefixCache | None = None) -> torch.Tensor:
        inputs = {name: getattr(batch, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}
        return cross_entropy(self._logits(inputs, batch.keep, prefix), batch.predicted_by, batch.labels)

    def _shared_pass(self, texts: Texts, tokens: Mapping[str, int], leading: int) -> SharedPass | None:
        """How texts behind a cached prefix share a pass; None for a row each. `tokens`: vectors per slot."""
        if not self._can_share:
            return None
        words_cost = None if self.no_words else 1.0 if self.lm.changes else FORWARD_ONLY
        return choose_pass(texts, tokens, leading, words_cost)

    def _behind_words(
        self, words: Sequence[Ids], batch: SharedPrefixBatch, prefix: PrefixCache | None
    ) -> PrefixCache | None:
        """The prefix with the keys and values of `words` behind it, for the rows of `batch`.

        They are computed anew in each pass, by one pass over all of them: kept ones would depend on which others they
        were computed with, and a resumed run would differ from one that wasn't stopped.
        """
        if batch.cached is None:
            return prefix
        before, longest = _length(prefix), max(map(len, words))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in words], device=self.lm.device)
        inputs: dict[str, Any] = {}
        if before:
            inputs["attention_mask"] = causal_masks(self.lm, longest, before)
            inputs["position_ids"] = torch.arange(before, before + longest, device=ids.device).expand(len(ids), -1)
        with torch.set_grad_enabled(self.lm.changes and torch.is_grad_enabled()):
            return words_cache(self.lm.model, self.lm.embed(ids), prefix, batch.cached, **inputs)

    def shape_of(self, texts: Texts) -> PassShape:
        """What a forward pass over these texts to train on has, counted without it."""
        tokens = self.slot_tokens(texts)
        media = sum(name.rpartition(":")[2] not in (SOFT_PROMPT, SOFT_PROMPT_END) for name in tokens)
        leading = () if self.no_prefix else leading_ids(texts)
        rest = [without_leading(text, len(leading)) for text in texts]
        shared = self._shared_pass(rest, tokens, len(leading))
        words = len(leading) if self.lm.changes else 0
        if shared is None:
            length = max(length_of(text, tokens) for text in rest)
            return PassShape(len(texts), length, len(leading), sum(map(_count_targets, texts)), media, False, words)
        packed = pack_rows(len(texts), shared.groups, tokens, len(leading), shared.words)
        before = packed.before.place.shape[1] if packed.before else len(leading)
        words += len(shared.words) * max(map(len, shared.words), default=0) if self.lm.changes else 0
        return PassShape(packed.rows, packed.length, before, len(packed.places), media, True, words)

    def slot_tokens(self, texts: Texts) -> dict[str, int]:
        """Positions of every slot that `texts` name."""
        names = dict.fromkeys(segment.slot for text in texts for segment in text if segment.slot)
        soft = soft_slots(self.adapter.soft_tokens, self.prompt.template)
        return {name: soft.get(name, self._positions_of_image) for name in names}

    @property
    def _positions_of_image(self) -> int:
        """Positions that an image takes among the words."""
        if self._injector is None:
            return self.adapter.tokens
        return 0 if self._injector.inserts else 1

    def _logits(self, inputs: dict[str, Any], keep: torch.Tensor, prefix: PrefixCache | None) -> torch.Tensor:
        """The logits `(kept, vocabulary)` at the positions `keep` of a batch that `prefix` stands before."""
        if prefix is not None:
            inputs = inputs | {cache_argument(self.lm.model): prefix}
        return self.lm.model(**inputs, logits_to_keep=keep, use_cache=False).logits

    @property
    def no_prefix(self) -> str:
        """Why the words that all texts begin with aren't computed once; "" if they are."""
        if not self.reuses_words:
            return "it was switched off"
        return why_no_prefix(self.lm, bool(self._injector and self._injector.compat))

    @property
    def no_words(self) -> str:
        """Why words before an image aren't computed once for all texts of a pass that begin with them; "" if they
        are.
        """
        return self.no_prefix or why_no_words(self.lm, self.adapter.injects)

    def prefix_length(self, texts: Texts) -> int:
        """How many words all texts begin with that are computed once; 0 for none."""
        return 0 if self.no_prefix else len(leading_ids(texts))

    def _take_prefix(self, texts: Texts) -> tuple[Texts, PrefixCache | None]:
        """The texts without the words that all of them begin with, and those words' keys and values; the texts as they
        are, and None, where there is no such prefix or the model can't reuse one (`no_prefix`).
        """
        ids = () if self.no_prefix else leading_ids(texts)
        if not ids:
            return texts, None
        return [without_leading(text, len(ids)) for text in texts], self._prefixes.of(ids)

    def _causal_inputs(self, batch: SplicedBatch, before: int) -> dict[str, Any]:
        """As `_inputs`, for padding on the right, where no token attends to it: without a mask, with which attention
        uses its causal kernels, unless a prefix comes before the batch.
        """
        inputs: dict[str, Any] = {"inputs_embeds": batch.inputs_embeds}
        if before and self._takes_positions:
            rows, length = batch.inputs_embeds.shape[:2]
            inputs["attention_mask"] = causal_masks(self.lm, length, before)
            inputs["position_ids"] = torch.arange(before, before + length, device=self.lm.device).expand(rows, -1)
        return inputs

    def _inputs(self, batch: SplicedBatch, before: int = 0) -> dict[str, torch.Tensor]:
        """The language model's arguments for a batch behind a cached prefix of `before` tokens; without `position_ids`
        for a model that takes none.
        """
        whole = functional.pad(batch.attention_mask, (before, 0), value=1)
        # A state-space model's mask is that of the positions it is given.
        mask = batch.attention_mask if self.lm.family.recurrent else whole
        position_ids = positions_of(whole)[:, before:] if before else batch.position_ids
        inputs = {"inputs_embeds": batch.inputs_embeds, "attention_mask": mask}
        return inputs | ({"position_ids": position_ids} if self._takes_positions else {})

    def _splice(
        self, texts: Texts, slots: dict[str, torch.Tensor], prefix: PrefixCache | None = None, **options: Any
    ) -> tuple[SplicedBatch, AbstractContextManager]:
        """The batch, and the context in which the language model must read it, which injects vectors if any.

        An injected image takes one position that position ids don't count and the mask hides; none in a model without
        masks. With `compat`, as in eP-ALM's released code, it comes first and the soft prompt isn't counted either.
        """
        if self._injector is None:
            return splice(self.lm, texts, slots, **options), nullcontext()
        media = {name: vectors for name, vectors in slots.items() if name not in (SOFT_PROMPT, SOFT_PROMPT_END)}
        compat, inserts = self._injector.compat, self._injector.inserts
        if compat:
            texts = [sorted(text, key=lambda segment: segment.slot not in media) for text in texts]
        placeholder = torch.zeros(0 if inserts else 1, self.lm.hidden_size)
        batch = splice(self.lm, texts, slots | dict.fromkeys(media, placeholder), **options)
        injected = [slot for slot in batch.slots if slot[0] in media]
        if not injected:
            return batch, nullcontext()
        names, row_list, position_list = zip(*injected, strict=True)
        if inserts and list(row_list) != list(range(len(texts))):
            raise AdapterError(f"{self.lm.name} has images injected: each text must have exactly one")
        rows, positions = (torch.tensor(values, device=self.lm.device) for values in (row_list, position_list))
        unpositioned = None
        if not inserts:
            batch.attention_mask[rows, positions] = 0
            counted = batch.attention_mask.clone()
            for name, row, start in batch.slots:
                if compat and name not in media:
                    counted[row, start : start + len(slots[name])] = 0
            batch.position_ids = positions_of(counted)
            unpositioned = counted == 0 if compat else None
        stacked = torch.stack([media[name] for name in names]).to(self.lm.device)
        vectors = InjectedVectors(stacked, rows, positions, unpositioned, _length(prefix))
        return batch, self._injector.inject(vectors, len(texts), batch.inputs_embeds.shape[1])

    @torch.no_grad()
    def generate(self, texts: Texts, features: Features, max_new_tokens: int = 64, **decoding: Any) -> list[str]:
        """Answer prompts made with `answer=False`, greedily unless `decoding` (arguments of `GenerationConfig`) says
        otherwise. Returns one answer per text.

        With `compat` injection each new token needs a pass over the whole text, because the injected position attends
        to later tokens and no KV cache holds what it makes of them. Raises AdapterError there, and where a runtime
        computes the language model, for other `decoding` than `num_beams`, or what tokens are drawn by.
        """
        with self.lm.generating:
            rows = self._generate_ids(texts, features, max_new_tokens, decoding)
        return [self._decode(ids) for ids in rows]

    def stream(
        self, text: Sequence[Segment], features: Features, max_new_tokens: int = 64, **decoding: Any
    ) -> Generator[str, None, AnswerEnd]:
        """The answer of `generate` to one prompt in pieces, as they are made, and at the end how it ended; see
        `streaming.stream_text`.

        Raises AdapterError for beam search, which knows the answer only at its end.
        """
        if decoding.get("num_beams", 1) > 1:
            raise AdapterError(
                f"with {decoding['num_beams']} beams the answer is known only at its end; stream with beams 1"
            )

        def generate(queue: TokenQueue) -> None:
            with self.lm.generating:
                self._generate_ids([text], features, max_new_tokens, decoding, queue)

        return stream_text(generate, TextPieces(self._decode, self.prompt.stop_ids))

    @torch.no_grad()
    def _generate_ids(
        self,
        texts: Texts,
        features: Features,
        max_new_tokens: int,
        decoding: Mapping[str, Any],
        streamer: TokenQueue | None = None,
    ) -> list[list[int]]:
        """The ids of each answer, with whatever follows its first stop token. `streamer` gets them as they are made."""
        stop, slots = self.prompt.stop_ids, self.slots(texts, features)
        if (runtime := self.lm.runtime) is not None:
            prompts = [mix(self.lm, text, slots) for text in texts]
            return [passes.generate(runtime, each, stop, max_new_tokens, decoding, streamer) for each in prompts]
        if self._injector is not None and self._injector.compat:
            return self._generate_compat(texts, slots, max_new_tokens, streamer, **decoding)
        texts, prefix = self._generation_prefix(texts, slots, max_new_tokens)
        batch, injection = self._splice(texts, slots, prefix, side="left", train=False)
        config = GenerationConfig(
            **{"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, **decoding},
            eos_token_id=list(stop),
            pad_token_id=stop[0],
        )
        inputs: dict[str, Any] = self._inputs(batch, _length(prefix))
        if prefix is not None:
            rows = len(texts) * max(config.num_beams or 1, config.num_return_sequences or 1)
            inputs |= _generation_inputs(inputs, prefix) | {cache_argument(self.lm.model): growing_cache(prefix, rows)}
        with injection:
            ids = cast(Any, self.lm.model).generate(**inputs, generation_config=config, streamer=streamer)
        return ids.tolist()

    def _generation_prefix(
        self, texts: Texts, slots: dict[str, torch.Tensor], max_new_tokens: int
    ) -> tuple[Texts, PrefixCache | None]:
        """As `_take_prefix`, for texts to be answered.

        Padding stands between the prefix and the rest of a text. A state-space model would read it, and a sliding
        window count it, unless it is wide enough for everything: there is no prefix then. Nor where an injected image
        would be all that is left of a text, which looks like a generated token.
        """
        if self.lm.family.recurrent or (self._injector is not None and any(text[-1].slot for text in texts)):
            return texts, None
        window = getattr(self.lm.model.config.get_text_config(), "sliding_window", None)
        lengths = {length_of(text, {name: len(vectors) for name, vectors in slots.items()}) for text in texts}
        if window and len(lengths) > 1 and max(lengths) + max_new_tokens > window:
            return texts, None
        return self._take_prefix(texts)

    def _generate_compat(
        self,
        texts: Texts,
        slots: dict[str, torch.Tensor],
        max_new_tokens: int,
        streamer: TokenQueue | None = None,
        num_beams: int = 1,
        **drawing: Any,
    ) -> list[list[int]]:
        choose = token_chooser({"num_beams": num_beams, **drawing})
        if num_beams == 1:
            return self._generate_uncached(texts, slots, max_new_tokens, streamer, choose)

        def score(text: Sequence[Segment]) -> Scorer:
            return lambda answers: self._next_logits([text] * len(answers), answers, slots).log_softmax(-1)

        return [search_beams(score(text), num_beams, max_new_tokens, self.prompt.stop_ids) for text in texts]

    def _generate_uncached(
        self,
        texts: Texts,
        slots: dict[str, torch.Tensor],
        max_new_tokens: int,
        streamer: TokenQueue | None = None,
        choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
    ) -> list[list[int]]:
        """Ids for each text, each chosen from the logits, until every row has a stop token."""
        answers: list[list[int]] = [[] for _ in texts]
        while len(answers[0]) < max_new_tokens and not all(set(self.prompt.stop_ids) & set(ids) for ids in answers):
            tokens = choose(self._next_logits(texts, answers, slots))
            if streamer is not None:
                streamer.put(tokens.cpu())
            for ids, token in zip(answers, tokens.tolist(), strict=True):
                ids.append(token)
        return answers

    def _next_logits(
        self, texts: Texts, answers: Sequence[Sequence[int]], slots: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Logits `(texts, vocabulary)` in fp32 of the token after each text with its answer so far, without a cache."""
        extended = [[*text, Segment(ids=tuple(ids))] for text, ids in zip(texts, answers, strict=True)]
        if (runtime := self.lm.runtime) is not None:
            return torch.cat([passes.next_logits(runtime, mix(self.lm, text, slots)) for text in extended])
        batch, injection = self._splice(extended, slots, side="left", train=False)
        with injection:
            logits = self.lm.model(**self._inputs(batch), logits_to_keep=1, use_cache=False).logits
        return logits[:, -1].float()

    def _decode(self, ids: Sequence[int]) -> str:
        """Ids up to the first stop token, as text."""
        end = next((i for i, token in enumerate(ids) if token in self.prompt.stop_ids), len(ids))
        return str(self.prompt.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)).strip()


def _length(prefix: PrefixCache | None) -> int:
    """The number of tokens in a cached prefix."""
    return 0 if prefix is None else prefix.length


def _generation_inputs(inputs: Mapping[str, torch.Tensor], prefix: PrefixCache) -> dict[str, torch.Tensor]:
    """Embeddings and position ids for `generate`, which drops as many positions as the cache holds from the front."""
    before = _length(prefix)
    padded = {"inputs_embeds": functional.pad(inputs["inputs_embeds"], (0, 0, before, 0))}
    if "position_ids" in inputs:
        positions = inputs["position_ids"]
        own = torch.arange(before, device=positions.device).expand(len(positions), -1)
        padded["position_ids"] = torch.cat([own, positions], 1)
    return padded


def _count_targets(text: Sequence[Segment]) -> int:
    return sum(len(segment.ids) for segment in text if segment.target)


def _seeded_normal(draw: str, names: Iterable[str], shape: torch.Size) -> torch.Tensor:
    """Standard normal numbers `(names, *shape)`, for each name a function of `draw` and the name alone."""
    seeds = [int.from_bytes(hashlib.sha256(f"{draw}/{name}".encode()).digest()[:8], "little") for name in names]
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed >> 1)) for seed in seeds])
