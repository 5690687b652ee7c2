"""Which scheduler gets a request: by model name, then readiness, then load; and which one gets it next, when its
scheduler is away or turns it away."""

from collections.abc import Iterable

from quire.errors import ModelNotFound, Unavailable
from quire.v1 import generation_pb2
from quire_tokenizer.scheduler_link import SchedulerLink
from quire_tokenizer.stream import RequestStream

_RETRY_AFTER_MS = 1000


class Router:
    """The links of this process and the models behind them."""

    def __init__(self, links: Iterable[SchedulerLink]) -> None:
        self._links = list(links)
        for link in self._links:
            link.move = self._move

    @property
    def ready(self) -> bool:
        """Whether some model can be served now."""
        return any(link.can_serve for link in self._links)

    def route(self, model: str) -> SchedulerLink:
        """The link for a request of `model`; an empty name means the only model served.

        A scheduler that was known and is away keeps its requests: they wait for it. Raises `ModelNotFound` naming
        what is served, or `Unavailable` while no scheduler has answered yet or all that serve it drain.
        """
        known = [link for link in self._links if link.state.max_model_len]
        if not known:
            raise Unavailable("no scheduler with a worker is attached yet", retry_after_ms=_RETRY_AFTER_MS)
        if not model:
            model = self._only_model(known)
        candidates = [link for link in known if model in link.state.served_model_names]
        if not candidates:
            raise ModelNotFound(f"model={model!r} is not served here; served: {_names(known)}", field="model")
        best = min(candidates, key=lambda link: (not link.can_serve, link.draining, link.num_live))
        if best.draining:
            raise Unavailable(
                f"model={model!r}: every scheduler that serves it is draining", retry_after_ms=_RETRY_AFTER_MS
            )
        return best

    def withdraw(self, stream: RequestStream) -> None:
        """The request is over for its client, wherever it is by now."""
        for link in self._links:
            link.withdraw(stream)

    def gather(self, target: SchedulerLink) -> None:
        """A scheduler can serve: it gets what waits for one that is away."""
        for link in self._links:
            if not link.attached and link is not target:
                link.move_all()

    def models(self) -> list[generation_pb2.ModelCard]:
        """One card per served name."""
        cards: dict[str, generation_pb2.ModelCard] = {}
        for link in self._links:
            for name in link.state.served_model_names:
                card = cards.setdefault(name, generation_pb2.ModelCard(id=name))
                card.max_model_len = max(card.max_model_len, link.state.max_model_len)
                card.ready = card.ready or link.can_serve
        return [cards[name] for name in sorted(cards)]

    def _move(self, stream: RequestStream, source: SchedulerLink) -> bool:
        """Hands a request to another scheduler that can serve it now, if there is one."""
        targets = [
            link
            for link in self._links
            if link is not source and link.can_serve and stream.model in link.state.served_model_names
        ]
        if not targets:
            return False
        source.withdraw(stream)
        min(targets, key=lambda link: link.num_live).submit(stream)
        return True

    def _only_model(self, known: list[SchedulerLink]) -> str:
        canonical = {link.state.served_model_names[0] for link in known if link.state.served_model_names}
        if len(canonical) != 1:
            raise ModelNotFound(f"model='': several are served, name one of {_names(known)}", field="model")
        return canonical.pop()


def _names(links: list[SchedulerLink]) -> str:
    return ", ".join(sorted({name for link in links for name in link.state.served_model_names}))
