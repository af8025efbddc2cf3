"""How Basic-VLM sees a record, bug for bug: `compat = "basicvlm"`.

Only the first question and its answer; line breaks are deleted from the question; special tokens in a text are parsed; the answer ends
with the tokenizer's end token and no <|im_end|>. Without compat, template qwen is the same format by the rules of all templates.
Reference: dataset/image_caption_dataset.py and dataprocess/process_image.py of xinyanghuang7/Basic-Visual-Language-Model at 559d07ca.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas import Record, Turn
from trainer.text.rendered import IGNORE, IMAGE, MARKER, Rendered
from trainer.text.template import refuse
from trainer.text.tokenizer import Tokenizer

SYSTEM = "你是一位图像理解助手。"
_PICTURE = "\ue000"


def render(record: Record, turns: Sequence[Turn], system: str | None, tokenizer: Tokenizer) -> Rendered:
    """Prompt and answer, the answer and its end trained on. Raises RecordError where there is no first question with one picture."""
    roles = [turn.role for turn in turns[:2]]
    if roles != ["user", "assistant"] or len(record.images) != 1:
        raise refuse(
            "a question with one picture and its answer in compat basicvlm", f"{', '.join(roles)} and {len(record.images)} pictures"
        )
    question = "".join(_PICTURE if part.image is not None else part.text or "" for part in turns[0].parts).replace("\n", "")
    if question.count(_PICTURE) != 1:
        raise refuse("a picture once in the first question in compat basicvlm", f"{question.count(_PICTURE)} times")
    words = SYSTEM if system is None else system
    out = Rendered()
    text = ""
    prompt = f"<|im_start|>system\n{words}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    for number, piece in enumerate(prompt.split(_PICTURE)):
        if number:
            out.ids.append(IMAGE)
            out.spans.append((len(text), len(text) + len(MARKER)))
            text += MARKER
        text = _parse(out, piece, text, tokenizer)
    context = len(out.ids)
    text = _parse(out, turns[1].text(), text, tokenizer)
    out.ids.append(tokenizer.eos)
    out.spans.append((len(text), len(text) + len(tokenizer.eos_text)))
    labels = [IGNORE] * context + out.ids[context:]
    return Rendered(ids=out.ids, labels=labels, spans=out.spans, images=[0], text=text + tokenizer.eos_text)


def _parse(out: Rendered, piece: str, text: str, tokenizer: Tokenizer) -> str:
    """Add the tokens of a text, special ones among them; the text so far."""
    for part in tokenizer.split(piece):
        if part in tokenizer.specials:
            ids, spans = [tokenizer.specials[part]], [(0, len(part))]
        else:
            ids, spans = tokenizer.encode(part, first=False)
        out.ids.extend(ids)
        out.spans.extend((len(text) + start, len(text) + end) for start, end in spans)
        text += part
    return text
