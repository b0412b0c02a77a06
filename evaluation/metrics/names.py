"""What the scores are called in plain words, for people who read a report for the first time."""

PLAIN = {
    "caption_bleu4": "phrases shared with the captions (BLEU-4)",
    "caption_cider": "telling phrases shared (CIDEr)",
    "caption_clip": "clips named completely",
    "caption_clipscore": "agreement with the picture (CLIPScore)",
    "caption_events": "sounds named right",
    "caption_exact": "captions exactly right",
    "caption_f1": "words shared with the caption",
    "caption_meteor": "words shared, synonyms too (METEOR)",
    "caption_movers": "movers named right",
    "caption_objects": "objects named right",
    "caption_recording": "recordings named completely",
    "caption_rouge_l": "words shared in order (ROUGE-L)",
    "caption_scene": "scenes named completely",
    "caption_spice": "objects, attributes and relations shared (SPICE)",
    "caption_set_f1": "different words shared",
    "qa_accuracy": "questions answered right",
    "qa_vqa": "agreement with ten people (VQA)",
    "vqa_always": "agreement with ten people (VQA)",
    "box_accuracy": "boxes that overlap by half or more",
    "pope_f1": "yes answers, F1 (POPE)",
    "pope_precision": "yes answers that are right (POPE)",
    "pope_recall": "objects that get a yes (POPE)",
    "pope_yes": "share of yes answers (POPE)",
}


def plain_name(name: str) -> str:
    """A score's name in plain words; of a kind of question "questions: kind", otherwise the name without underscores.

    `name` is the one in eval.json, as caption_f1.
    """
    if name in PLAIN:
        return PLAIN[name]
    kind = name.removeprefix("qa_").replace("_", " ")
    return f"questions: {kind}" if name.startswith("qa_") else kind
