"""What happens where the page evaluates its decoders on many scenes. Knows no Gradio."""

from collections.abc import Iterator
from typing import Any

from sightline.demo.forms import is_shown, read_drawing, read_scenes, read_way
from sightline.demo.host import Host
from sightline.demo.lab_job import LabJob
from sightline.demo.rendering import error, plots, progress
from sightline.demo.turns import Busy, Turns

AT_ONCE = 4  # evaluations that are under way, one of each client
PATIENCE = 1.0  # seconds between two looks whether it is the client's turn
GLANCE = 0.25  # seconds between two looks at an evaluation
Parts = dict[str, Any]
"""New values of parts of the page, by name; the others stay as they are."""


class LabEvents:
    """What each event of the evaluation changes.

    Args:
        host: Shared by all sessions.
    """

    def __init__(self, host: Host):
        self.host = host
        self.turns = Turns(AT_ONCE, 1, host.limits.waiting)

    def run(self, _: Any, client: str, scenes: Any, drawing: Any, *forms: Any) -> Iterator[Parts]:
        """The lab's evaluation of the columns' ways. When nobody looks any more it ends."""
        try:
            ways = [read_way(form) for form in forms if is_shown(form)]
            job = LabJob(self.host, ways, read_scenes(scenes), read_drawing(drawing), client)
        except ValueError as refused:
            yield told(str(refused))
            return
        turn = self.turns.ask(client)
        try:
            yield {
                "job": job,
                **told(""),
                "lab-table": "",
                "lab-plots": "",
                "lab-run": False,
                "lab-stop": True,
            }
            while not (turn.wait(PATIENCE) or job.is_stopped):
                yield {}
            job.start()
            while not job.is_over:
                yield {"lab-progress": progress(job.done, job.total)}
                job.wait(GLANCE)
            ended = self.show(job)
        except Busy as refused:
            ended = told(str(refused))
        finally:
            job.stop()
            self.turns.end(turn)
        yield {"job": None, **ended, "lab-run": True, "lab-stop": False}

    def show(self, job: LabJob) -> Parts:
        """What came of an evaluation."""
        if job.result is None:
            return {"lab-progress": "", **told(job.refused)}
        result = job.result
        return {
            "lab-progress": progress(result.done, result.total, is_over=True),
            "lab-table": result.table,
            "lab-plots": plots(result.plots),
            **told(result.note),
        }

    def stop(self, _: Any, job: LabJob | None) -> Parts:
        """Ends an evaluation at its next batch."""
        if job is not None:
            job.stop()
        return {}


def told(text: str) -> Parts:
    return {"error-lab": error("lab", text)}
