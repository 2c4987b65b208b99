"""The short way of a light question: one small JPEG, whole in one read, from its bytes to the bytes of its answer.

What a framework does for every request, a task, a scope, queues of messages, takes as long as a light network. None of
it is needed where nothing has to be waited for but the network itself. So a connection asks here first. What this is
not for, a form, JSON, a photo, a body that comes in parts, a request that is traced, goes the ordinary way; both ways
lead through the same checks and the same engine, and end in the same answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl

from starlette.types import Scope

from cascade.errors import CascadeError
from cascade.exits import Threshold
from server.codec import LIGHT_PIXELS
from server.heads import METHOD, PATH, Head
from server.images import Glance, glance, read_image
from server.journal import Journal, Record
from server.logs import request_id
from server.models import Model
from server.options import Options, read_options
from server.outcome import Outcome, Request
from server.predict import LIGHT_BYTES, Answer, Predictor, note_exits, write
from server.replies import CLIENT_CLOSED_REQUEST, Reply, error_reply, unforeseen

logger = logging.getLogger(__name__)

PLAIN = Options()

Send = Callable[[Reply], None]


@dataclass(eq=False, slots=True)
class Inquiry:
    """A light question in hand.

    Attributes:
        record: in the journal.
        send: takes the reply.
        predictor: whose house it is in; None before it was let in.
        model: that is asked, held until the end.
        options: of the question.
        threshold: energy that has to be exceeded.
        began, decoded: when decoding did and was, on the clock of `time.perf_counter`; 0 before that.
        request: of the engine.
    """

    record: Record
    send: Send
    predictor: Predictor | None = None
    model: Model | None = None
    options: Options = PLAIN
    threshold: Threshold = 0.0
    began: float = 0.0
    decoded: float = 0.0
    request: Request | None = None


class Direct:
    """Answers light questions.

    Args:
        predictor: gives what answers; asked each time, since an application can live more than once.
        journal: told of every question.
        check: looks at a request before anything else does, and raises what it is refused with.
        max_body: bytes that a body may have at all.

    Attributes:
        largest: bytes of a body that is light.
    """

    def __init__(
        self, predictor: Callable[[], Predictor], journal: Journal, check: Callable[[Scope], None], max_body: int
    ) -> None:
        self._predictor, self._journal, self._check = predictor, journal, check
        self.largest = min(LIGHT_BYTES, max_body)

    def ask(self, head: Head, client: tuple[str, int] | None, body: bytes, send: Send) -> Inquiry | None:
        """Begin to answer, if it is a light question.

        Args:
            head: of the request.
            client: its address.
            body: all of it.
            send: called once with the whole reply, perhaps before this returns; never after `withdraw`.

        Returns:
            The inquiry; None where the request has to go the ordinary way.
        """
        seen = glance(body)
        if seen is None or seen.pixels > LIGHT_PIXELS:
            return None
        inquiry = Inquiry(self._journal.begin(head.headers), send)
        inquiry.record.route = PATH
        token = request_id.set(inquiry.record.id)
        try:
            self._check({"path": PATH, "headers": head.headers, "client": client})
            self._begin(inquiry, head, body, seen)
        except Exception as error:
            self._end(inquiry, error)
        finally:
            request_id.reset(token)
        return inquiry

    def withdraw(self, inquiry: Inquiry) -> None:
        """Let an inquiry go whose client has hung up; harmless where it has been answered."""
        request, model = inquiry.request, inquiry.model
        if request is not None and model is not None and not request.over:
            model.engine.withdraw(request)
            inquiry.record.fields["error"] = "client_disconnected"
            self._close(inquiry, CLIENT_CLOSED_REQUEST)

    def _begin(self, inquiry: Inquiry, head: Head, body: bytes, seen: Glance) -> None:
        predictor = self._predictor()
        predictor.intake.enter()
        inquiry.predictor = predictor
        model = predictor.models.get()
        controls = model.hold()
        inquiry.model = model
        asked_ms = head.named.get(b"x-deadline-ms")
        deadline = predictor.deadline(None if asked_ms is None else asked_ms.decode("latin-1"))
        model.engine.check_room(deadline)
        if head.query:
            inquiry.options = read_options(parse_qsl(head.query.decode("latin-1"), keep_blank_values=True))
        options = inquiry.options
        inquiry.began = time.perf_counter()
        pixels = read_image(body, model.manifest.preprocess, predictor.caps.pixels, "the image", seen)
        inquiry.decoded = time.perf_counter()
        inquiry.threshold = model.threshold(options.threshold, options.profile, controls)
        inquiry.request = model.engine.begin(
            (pixels,),
            inquiry.threshold,
            partial(self._answered, inquiry),
            controls.max_stage if options.max_stage is None else options.max_stage,
            deadline,
            options.allow_truncated,
            priority=options.turn,
        )

    def _answered(self, inquiry: Inquiry, result: Sequence[Outcome] | Exception) -> None:
        """Called by the engine."""
        token = request_id.set(inquiry.record.id)
        try:
            if isinstance(result, Exception):
                raise result
            self._reply(inquiry, result)
        except Exception as error:
            self._end(inquiry, error)
        finally:
            request_id.reset(token)

    def _reply(self, inquiry: Inquiry, outcomes: Sequence[Outcome]) -> None:
        model, now = inquiry.model, time.perf_counter()
        assert model is not None, "the engine was asked"
        if self._journal.logs_success():
            note_exits(model, outcomes, inquiry.record)
        model.metrics.asked(True, now - inquiry.began)
        elapsed, run = now - inquiry.decoded, outcomes[0].run_s
        answer = Answer(inquiry.threshold, outcomes, inquiry.decoded - inquiry.began, max(0.0, elapsed - run), run)
        self._send(inquiry, write(model, answer, inquiry.options))

    def _end(self, inquiry: Inquiry, error: Exception) -> None:
        """Answer with what went wrong."""
        if inquiry.model is not None and inquiry.began:
            inquiry.model.metrics.asked(False, time.perf_counter() - inquiry.began)
        if isinstance(error, CascadeError):
            inquiry.record.fields["error"] = error.code
            self._send(inquiry, error_reply(error))
        else:
            logger.error("unforeseen error", exc_info=error)
            self._send(inquiry, unforeseen())

    def _send(self, inquiry: Inquiry, reply: Reply) -> None:
        reply.headers.append((b"x-request-id", inquiry.record.id.encode("latin-1")))
        inquiry.send(reply)
        self._close(inquiry, reply.status)

    def _close(self, inquiry: Inquiry, status: int) -> None:
        if inquiry.model is not None:
            inquiry.model.let_go()
        if inquiry.predictor is not None:
            inquiry.predictor.intake.leave()
        self._journal.end(inquiry.record, METHOD, PATH, status)
