"""What came first: a perceiver tells a clip from its reverse when each frame has a vector of its own."""

import pytest
import torch

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template

ASKED = [{"role": "user", "content": "what"}]


@pytest.mark.parametrize(("frames", "steps"), [(2, 250), (0, 20)])
def test_a_clip_and_its_reverse_get_different_answers_after_training_on_order(frames, steps, language_model_folder):
    lm = load_language_model(str(language_model_folder("gpt_neox")))
    torch.manual_seed(0)
    shape, form = FeatureShape("patches", 4, 8, (4, 1)), {"output_norm": False, "projector_layers": 1}
    adapter = Adapter("perceiver8", shape, lm.hidden_size, lm.embedding_rms, projector_frames=frames, **form)
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, Template(delimiters=("", ""))))
    first, second = torch.randn(2, 2, 8)
    clips = {"clip": torch.cat([first, second]), "reverse": torch.cat([second, first])}
    answers = {"clip": "red", "reverse": "blue"}
    texts = [model.prompt.segments([*ASKED, {"role": "assistant", "content": answers[name]}], [name]) for name in clips]
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(steps):
        loss, count = model.loss(texts, clips)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    asked = [model.prompt.segments(ASKED, [name], answer=False) for name in clips]
    forwards, backwards = model.generate(asked, clips, 4)
    assert (forwards != backwards) == bool(frames)
