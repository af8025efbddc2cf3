"""How many positions a model has: what cuts a record to them. It travels between processes, as a model does not."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.text.rendered import IMAGE, Rendered


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Call it with a record for what of it the model sees. A picture that does not fit whole goes: nothing follows it."""

    longest: int | None = None  # None: no end
    picture: int = IMAGE  # a picture's id
    patches: int = 1  # positions that it takes

    def __call__(self, rendered: Rendered) -> Rendered:
        if self.longest is None:
            return rendered
        at = 0
        for number, id in enumerate(rendered.ids):
            at += 0 if number in rendered.hidden else self.patches if id == self.picture else 1
            if at > self.longest:
                return rendered.cut(number, self.picture)
        return rendered
