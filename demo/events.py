"""What happens on the page: from what its controls hold to what its parts show. Knows no Gradio."""

import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline.demo.comparison import (
    Comparison,
    Explained,
    FieldError,
    SamplingSettings,
    SourceImage,
)
from sightline.demo.comparison_run import ComparisonRun
from sightline.demo.forms import (
    form_of_drawing,
    form_of_way,
    is_shown,
    read_drawing,
    read_way,
)
from sightline.demo.host import Host
from sightline.demo.lab_events import Parts
from sightline.demo.rendering import (
    blank_card,
    card,
    code,
    error,
    legend,
    panel,
    refusal,
    shown_image,
)
from sightline.demo.saved import Saved, from_decoded, to_json
from sightline.demo.script import is_seed, to_python
from sightline.demo.turns import BUSY, Busy, Turns
from sightline.demo.uploads import Uploads
from sightline.spec_text import GREEDY
from sightline.specs import Spec

IDLE: Parts = {"compare": True, "stop": False}
"""Which buttons can be pressed while no answer grows."""
FRAME = 0.08  # seconds between two images of growing answers, of all comparisons together
SHORT = 300  # tokens on the page that a browser draws within a frame; more take it longer
PATIENCE = 1.0  # seconds to wait for news of them, at most
SEEDS = 1_000_000
ANSWERING = 4  # comparisons that answer at the same time, whose memory is held; the others wait
OF_CLIENT = 2  # of them of one client
NO_IMAGE = "there is no image: choose one, or draw a new scene"
FORGOTTEN = "this answer is no longer kept here: press Compare again"
NO_ANSWER = "there is nothing to take yet: press Compare first"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Opened:
    """The answer whose tokens are being explained."""

    round: ComparisonRun
    number: int
    length: int
    explained: Explained

    @property
    def weights(self) -> dict[int, int]:
        """Bytes of what it holds, by identity."""
        return self.round.weights | self.explained.weights


class Events:
    """What each event of the page changes.

    Args:
        host: Shared by all sessions. All that belongs to one session is passed in and out.
        uploads: Where the files of all sessions arrive; None: as large as the host allows.
    """

    def __init__(self, host: Host, uploads: Uploads | None = None):
        self.host = host
        self.uploads = uploads or Uploads(host.bounds)
        self.places = range(host.limits.ways)
        waiting = host.limits.waiting
        self.comparisons = Turns(ANSWERING, OF_CLIENT, waiting)
        self.explanations = Turns(1, 1, waiting)  # each holds the scores of a whole answer

    # The image

    def first_image(self) -> SourceImage:
        """What is asked about until another one is chosen."""
        return self.host.open_shipped(self.host.shipped()[0])

    def again(self, source: Any) -> SourceImage | None:
        """The image that a page shows, where this session has none yet, or no longer.

        None for a file of somebody's own, which is kept nowhere else.
        """
        kind, _, name = source.partition(":") if isinstance(source, str) else ("", "", "")
        if kind == "shipped" and name in self.host.shipped():
            return self.host.open_shipped(name)
        return self.host.scene(int(name)) if kind == "scene" and is_seed(name) else None

    def choose_file(self, sent: Mapping[str, Any]) -> Parts:
        """A file of somebody's own."""
        try:
            upload = self.uploads.read_image(sent)
        except ValueError as refused:
            return {"error-image": error("image", str(refused))}
        return self.show_image(self.host.own(upload.found, upload.name))

    def choose_shipped(self, sent: Mapping[str, Any]) -> Parts:
        """An image that ships with the package."""
        try:
            return self.show_image(self.host.open_shipped(str(sent.get("name"))))
        except ValueError as refused:
            return {"error-image": error("image", str(refused))}

    def draw_scene(self, _: Mapping[str, Any]) -> Parts:
        """A scene that nobody has seen before."""
        return self.show_image(self.host.scene(secrets.randbelow(SEEDS)))

    def show_image(self, image: SourceImage) -> Parts:
        return {
            "chosen": image,
            "source": image.source,
            "image": shown_image(image),
            "error-image": error("image"),
        }

    # Answers

    def begin(
        self,
        _: Any,
        chosen: SourceImage | None,
        source: str,
        round: ComparisonRun | None,
        question: str,
        drawing: Any,
        *forms: Any,
    ) -> Parts:
        """Checks what was asked; `follow` does the rest."""
        if round is not None and not round.is_over:
            return {}
        if round is not None:
            round.leave()
        comparison, places, complaints = self.read(
            chosen or self.again(source), question, drawing, forms
        )
        told = self.errors(complaints)
        if complaints:
            return told
        return {
            **told,
            **self.show_round(ComparisonRun(comparison, places)),
            "compare": False,
            "stop": True,
        }

    def read(
        self, chosen: SourceImage | None, question: str, drawing: Any, forms: Sequence[Any]
    ) -> tuple[Comparison, tuple[int, ...], list[FieldError]]:
        """The comparison, the column of each way, and what stands in its way.

        A complaint about a way names its column. The comparison is whole if there are none.
        """
        ways, places, complaints = [], [], []
        for place, form in enumerate(forms):
            if not is_shown(form):
                continue
            try:
                ways.append(read_way(form))
                places.append(place)
            except ValueError as refused:
                complaints.append(FieldError("way", str(refused), place))
        read = SamplingSettings()
        try:
            read = read_drawing(drawing)
        except ValueError as refused:
            complaints.append(FieldError("drawing", str(refused)))
        if chosen is None:
            complaints.append(FieldError("image", NO_IMAGE))
        comparison = Comparison(chosen or self.first_image(), question or "", tuple(ways), read)
        # What concerns the whole, as the number of answers, may follow from what is told already.
        complaints += [
            found if found.way is None else replace(found, way=places[found.way])
            for found in self.host.check(comparison)
            if found.where != "page" or not complaints
        ]
        return comparison, tuple(places), complaints

    def errors(self, complaints: Sequence[FieldError]) -> Parts:
        """Every place where a complaint can stand, most of them empty."""
        texts = dict.fromkeys(self.error_places(), "")
        for complaint in complaints:
            place = complaint.where if complaint.way is None else f"way-{complaint.way}"
            texts[place] = texts[place] or complaint.text
        return {f"error-{place}": error(place, text) for place, text in texts.items()}

    def error_places(self) -> list[str]:
        """Of what `begin` may complain about."""
        return ["image", "question", "drawing", "page", *(f"way-{i}" for i in self.places)]

    def show_round(self, round: ComparisonRun) -> Parts:
        """A round's cards, with the script that does the same."""
        return {
            "round": round,
            "opened": None,
            "panel": "",
            "legend": legend(round.comparison),
            "script": code(self.script(round.comparison)),
            "error-load": error("load"),
            **self.cards(round),
        }

    def cards(self, round: ComparisonRun | None) -> dict[str, str]:
        """The cards of all columns."""
        made = {f"answer-{place}": blank_card(place) for place in self.places}
        if round is None:
            return made
        answers = round.answers
        for number, place in enumerate(round.places):
            made[f"answer-{place}"] = card(round.comparison, answers, number, place)
        return made

    def script(self, comparison: Comparison) -> str:
        host = self.host
        return to_python(
            comparison,
            host.name,
            device=host.device,
            dtype=host.dtype.value,
            chat_template_kwargs=host.template,
        )

    def follow(self, _: Any, round: ComparisonRun | None, client: str = "") -> Iterator[Parts]:
        """All cards, as answers grow from the client's turn on. They end when nobody looks."""
        if round is None or not round.claim():
            yield self.shown_cards(round, FORGOTTEN if round is None else "")
            return
        turn = self.comparisons.ask(client)
        try:
            while not (turn.wait(PATIENCE) or round.is_over):
                yield self.shown_cards(round)
            round.begin(self.host, client)
            while not round.is_left:
                start, is_over = time.monotonic(), round.is_over
                yield self.shown_cards(round)
                if is_over:
                    break
                round.wait(PATIENCE)
                pause = self.comparisons.count * frame(round)
                time.sleep(max(0.0, pause - (time.monotonic() - start)))
        except Busy as told:
            round.stop()
            yield self.shown_cards(round, str(told))
        finally:
            round.stop()
            self.comparisons.end(turn)

    def shown_cards(self, round: ComparisonRun | None, told: str = "") -> Parts:
        return {**self.cards(round), **self.complain("page", told)}

    def rest(self, _: Any, round: ComparisonRun | None) -> Parts:
        """Nobody follows a round any more: the buttons are another round's by now, or idle."""
        return IDLE if round is None or round.is_over else {}

    def give_up(self, _: Any, round: ComparisonRun | None) -> Parts:
        """Where the server's queue was full, so that no answer has begun."""
        if round is None or round.is_over:
            return IDLE
        round.stop()
        return {**self.cards(round), **self.complain("page", BUSY), **IDLE}

    def stop(self, _: Any, round: ComparisonRun | None) -> Parts:
        """Ends all answers."""
        if round is None or round.is_over:
            return {}
        round.stop()
        return {**self.cards(round), **({} if round.has_begun else IDLE)}

    def halt(self, place: int, round: ComparisonRun | None) -> Parts:
        """Ends the answer in one column."""
        if round is None or place not in round.places:
            return {}
        round.stop(round.places.index(place))
        return self.cards(round)

    # Why a token came

    def open_token(
        self,
        sent: Mapping[str, Any],
        round: ComparisonRun | None,
        opened: Opened | None,
        client: str = "",
    ) -> Parts:
        """The candidates of one token: `{"place": ..., "index": ...}`."""
        place, index = sent.get("place"), sent.get("index")
        if round is None:
            return {"opened": None, "panel": refusal(FORGOTTEN)}
        if place not in round.places or not isinstance(index, int):
            return {}
        number = round.places.index(place)
        answer = round.answers[number]
        try:
            if not is_of(opened, round, number, len(answer.ids)):
                with self.explanations.taken(client, self.host.limits.seconds):
                    explained = self.host.explain(round.comparison, number, answer, client)
                opened = Opened(round, number, len(answer.ids), explained)
        except (ValueError, Busy) as refused:
            return {"opened": None, "panel": refusal(str(refused))}
        assert opened is not None
        if not 0 <= index < len(opened.explained.tables):
            return {}
        shown = panel(round.comparison, number, place, answer, opened.explained, index)
        return {"opened": opened, "panel": shown}

    # Take it with you

    def copy_nothing(self, _: Any) -> Parts:
        """The script was wanted before there is one."""
        return self.complain("load", NO_ANSWER)

    def save(self, _: Any, round: ComparisonRun | None) -> Parts:
        """The comparison with its answers as a file, which the browser makes."""
        if round is None:
            return self.complain("load", NO_ANSWER)
        text = to_json(round.comparison, round.answers, self.host.name)
        name = f"sightline-{secrets.token_hex(3)}.json"
        return {"files": {"name": name, "text": text}, "error-load": error("load")}

    def load(self, sent: Mapping[str, Any], round: ComparisonRun | None) -> Parts:
        """A comparison that was saved, with its answers."""
        try:
            saved = from_decoded(self.uploads.read_comparison(sent))
            comparison = saved.comparison
            if len(comparison.ways) > len(self.places):
                raise ValueError(
                    f"this comparison has {len(comparison.ways)} answers, and at most "
                    f"{len(self.places)} are shown here"
                )
            self.check_answers(saved)
            loaded = ComparisonRun(comparison, tuple(range(len(comparison.ways))), saved.answers)
            loaded.stop()
            shown = self.show_round(loaded)
        except ValueError as refused:
            return self.complain("load", str(refused))
        if round is not None:
            round.leave()
        forms = {f"way-{place}": form_of_way(Spec(way=GREEDY), False) for place in self.places}
        for place, way in enumerate(comparison.ways):
            forms[f"way-{place}"] = form_of_way(way)
        return {
            **self.errors([]),
            **self.show_image(comparison.image),
            **shown,
            **forms,
            "question": comparison.question,
            "drawing": form_of_drawing(comparison.drawing),
            **IDLE,
        }

    def check_answers(self, saved: Saved) -> None:
        """Raises `ValueError` for answers that this page could not have given."""
        if saved.model != self.host.name:
            raise ValueError(
                f"these answers are those of {saved.model}, and {self.host.name} answers here: "
                f"load them on a page that was started with --model {saved.model}"
            )
        longest, most = max(len(a.ids) for a in saved.answers), self.host.limits.max_new_tokens
        if longest > most:
            raise ValueError(
                f"an answer in this file has {longest} tokens, and at most {most} are shown here"
            )

    def sent_file(self, _: Any) -> Parts:
        """The browser has its file; nothing of it stays."""
        return {"files": {}}

    def complain(self, place: str, text: str) -> Parts:
        return {f"error-{place}": error(place, text)}


def frame(round: ComparisonRun) -> float:
    """Seconds between two images of growing answers: long ones leave the browser its time."""
    return FRAME * max(1.0, sum(len(answer.ids) for answer in round.answers) / SHORT)


def is_of(opened: Opened | None, round: ComparisonRun, number: int, length: int) -> bool:
    """Whether what is open explains this answer as it is now."""
    return opened is not None and (opened.round, opened.number, opened.length) == (
        round,
        number,
        length,
    )
