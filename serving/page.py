"""The page at `/`: a conversation with pictures, sounds and clips in a browser, made with Gradio.

The conversation is kept by the server, as the messages that the API would be sent, so that answers are the API's.
"""

import base64
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from periscope.errors import RequestError, UserError
from periscope.evaluation.chat import grouped
from periscope.precompute.media import NOUNS
from periscope.serving.engine import Engine, Usage
from periscope.serving.page_access import PageGuard
from periscope.serving.requests import (
    AudioPart,
    ChatMessage,
    ChatRequest,
    ImagePart,
    Part,
    Place,
    Sound,
    TextPart,
    VideoPart,
)

TITLE = "Periscope"
KEPT, SWEPT = 3600, 300  # seconds: how long uploads and conversations are kept, how often old ones are looked for
SESSIONS = 200  # conversations at most
HEIGHT = "60vh"
# A button that would share with a site elsewhere, and one that would clear what is shown but not what is remembered.
HIDDEN = "button[aria-label='Share'], button[aria-label='Clear'] { display: none }"
CONTROL = "Also answer from another picture's features"
CONTROL_LABEL = "The control: the same words, another medium's features"
CAPTION = "(a caption)"

Shown = list[dict[str, Any]]  # messages as Gradio's Chatbot has them


@dataclass
class Talk:
    """A conversation: its messages as the API has them, and what is shown of it, also under the control."""

    messages: list[ChatMessage] = field(default_factory=list)
    shown: Shown = field(default_factory=list)
    control: Shown = field(default_factory=list)


def mount_page(app: FastAPI, engine: Engine, token: str, uploads: Path) -> FastAPI:
    """Add the page to the application, behind its rules. uploads: the folder for uploaded files."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # read when Gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    page = make_page(engine)
    page.state_session_capacity = SESSIONS
    page.has_launched = True  # without it, Gradio checks no paths
    app.add_middleware(PageGuard, token=token, uploads=uploads, most=engine.limits.max_upload)
    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=engine.limits.max_upload,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        css=HIDDEN,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )


def make_page(engine: Engine) -> Any:
    """The page's `gradio.Blocks`."""
    import gradio

    names = list(engine.models)
    read = sorted({modality for model in engine.models.values() for modality in model.readers if modality in NOUNS})
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SWEPT, KEPT), fill_width=True) as page:
        talk = gradio.State(Talk(), time_to_live=KEPT)
        with gradio.Row():
            model = gradio.Dropdown(names, value=names[0], label="Model", scale=2)
            control = gradio.Checkbox(label=CONTROL.replace("picture", _noun(read)), scale=2)
            new = gradio.Button("New conversation", scale=1)
        with gradio.Row():
            answers = gradio.Chatbot(label="Answers", **_chat())
            controls = gradio.Chatbot(label=CONTROL_LABEL, visible=False, **_chat())
        message = gradio.MultimodalTextbox(
            show_label=False,
            placeholder=f"Ask about {_listed(read)}; without words it is captioned",
            file_types=read,
            file_count="multiple",
            sources=["upload", "microphone"] if "audio" in read else ["upload"],
            autofocus=True,
        )

        async def ask(given: dict, before: Talk, name: str, also: bool) -> AsyncGenerator[tuple]:
            async with aclosing(converse(engine, given, before, name, also)) as steps:
                try:
                    async for step in steps:
                        yield step, step.shown, step.control, None
                except UserError as error:
                    raise gradio.Error(str(error), print_exception=False) from None

        def begin() -> tuple:
            return Talk(), [], []

        everything = [talk, answers, controls]
        message.submit(ask, [message, talk, model, control], [*everything, message], api_name="ask",
                       concurrency_limit=None)  # fmt: skip
        for event in (new.click, model.change):
            event(begin, None, everything, api_name="new" if event == new.click else None,
                  api_visibility="public" if event == new.click else "private")  # fmt: skip
        control.change(lambda also: gradio.update(visible=also), control, controls, api_visibility="private")
    return page


async def converse(
    engine: Engine, given: Mapping[str, Any], before: Talk, name: str, also: bool
) -> AsyncGenerator[Talk]:
    """The conversation with one more message, as its answer is made, and then, with `also`, that of the control.

    given: {"text", "files"} of the message. Raises UserError for what can't be answered; `before` is unchanged then.
    """
    files = [Path(path) for path in given.get("files") or ()]
    message = message_of(engine, name, given.get("text") or "", files)
    asked = Talk([*before.messages, message], [*before.shown, *shown(given)], list(before.control))
    _refuse_size(engine, asked.messages)
    request, talk = ChatRequest(name, asked.messages), asked
    async for answer in _pieces(engine, request):
        messages = [*asked.messages, ChatMessage("assistant", answer)]
        talk = Talk(messages, [*asked.shown, _said(answer)], asked.control)
        yield talk
    if also:
        async for other in _pieces(engine, request, shuffled=True):
            yield Talk(talk.messages, talk.shown, [*asked.control, shown(given)[-1], _said(other)])


async def _pieces(engine: Engine, request: ChatRequest, shuffled: bool = False) -> AsyncGenerator[str]:
    """The answer so far, whenever there is more of it. Raises what the engine gives in its place."""
    words = ""
    async with engine.place(), aclosing(engine.answer(request, shuffled)) as events:
        async for event in events:
            if isinstance(event, Exception):
                raise event
            if not isinstance(event, Usage):
                words += event
            yield words


def message_of(engine: Engine, name: str, words: str, files: Sequence[Path]) -> ChatMessage:
    """A message as the API would be sent it."""
    parts: list[Part] = []
    for modality, paths in grouped(engine.model(name), files).items() if files else ():
        for path in paths:
            data = base64.b64encode(path.read_bytes()).decode()
            if modality == "audio":
                parts.append(AudioPart(Sound(data)))
            else:
                kind = ImagePart if modality == "image" else VideoPart
                parts.append(kind(Place(f"data:;base64,{data}")))
    return ChatMessage("user", [*parts, TextPart(words)])


def shown(given: Mapping[str, Any]) -> Shown:
    """A message as Gradio's Chatbot shows it."""
    files = [{"role": "user", "content": {"path": str(path)}} for path in given.get("files") or ()]
    return [*files, {"role": "user", "content": given.get("text") or CAPTION}]


def _refuse_size(engine: Engine, messages: Sequence[ChatMessage]) -> None:
    """Raise RequestError for a conversation that the API would refuse to read."""
    size = sum(
        len(part.text) if isinstance(part, TextPart) else len(part.medium.place)
        for message in messages
        for part in message.parts()
    )
    if size > engine.limits.max_upload:
        raise RequestError(
            f"the conversation has {size:,} bytes with its media, and at most {engine.limits.max_upload:,} are read "
            "(--max-upload); begin a new one"
        )


def _said(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def _chat() -> dict[str, Any]:
    """What both columns have in common: words are shown as they are, and no buttons lead elsewhere."""
    return {
        "height": HEIGHT,
        "render_markdown": False,
        "buttons": ["copy"],
        "feedback_options": None,
        "layout": "bubble",
        "allow_file_downloads": False,
    }


def _noun(modalities: Sequence[str]) -> str:
    return NOUNS[modalities[0]][0] if len(modalities) == 1 else "medium"


def _listed(modalities: Sequence[str]) -> str:
    return " and ".join(NOUNS[modality][1] for modality in modalities)
