"""What all texts of a batch begin with and nothing trained has touched: words before the first vector.

With a chat template that is the system turn and the role header, 27 of the 69 positions of a SmolLM2 caption behind 16
image tokens. `adapters/lm/prefix_cache.py` computes them once.
"""

from collections.abc import Sequence

from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.selective_scan import KERNEL
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.shared_prefix import can_share, common_prefix

MIN_PREFIX = 8  # tokens; below that the mask and the copied keys cost what the positions save


def why_no_prefix(lm: LanguageModel, image_first: bool = False) -> str:
    """Why this model's texts can't begin with cached words; "" if they can. `image_first`: the adapter injects images
    at the beginning of the text, whatever the template says (`epalm_compat`).
    """
    if image_first:
        return "epalm_compat puts the image first, so that no words come before it"
    if lm.family.recurrent:
        if lm.changes:
            return f"a scan's last state has no gradient, which {'LoRA' if lm.lora else '--train-lm'} needs"
        return "mamba-ssm's kernel starts from an empty state" if KERNEL and lm.device.type == "cuda" else ""
    if not can_share(lm):
        return "it is tested only for the families in the table, with attention by sdpa or eager"
    return ""


def leading_ids(texts: Sequence[Sequence[Segment]]) -> tuple[int, ...]:
    """The ids that all texts begin with, before any vector, up to what predicts the first target; () if too few.

    Words alone that are to be answered have none: other texts hardly begin with all of them.
    """
    common = common_prefix([_leading(text) for text in texts])
    return common if len(common) >= MIN_PREFIX else ()


def _leading(text: Sequence[Segment]) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    for segment in text:
        if segment.slot is not None:
            return ids
        if segment.target:
            return ids[:-1]  # the last one's logits are needed
        ids += segment.ids
    return ()


def without_leading(text: Sequence[Segment], count: int) -> list[Segment]:
    """A text without its first `count` ids, all of which come before its first vector."""
    rest = []
    for segment in text:
        taken = min(count, len(segment.ids))
        count -= taken
        if not taken or taken < len(segment.ids):
            rest.append(segment._replace(ids=segment.ids[taken:]) if taken else segment)
    return rest
