"""What looks at a bundle's evaluator while it works: steps, progress, and what comes of a study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from numpy.typing import NDArray

from ...errors import InputError
from .steps import Steps
from .studies import Study

# What is done with a study's label map and its affine, once the bundle has written the mask.
Finish = Callable[[Study, NDArray[np.integer], NDArray[np.float64], Steps], None]


class Watch:
    """Handler of an evaluator that segments studies in their order, one at a time.

    Args:
        studies: what it segments.
        finish: what is done then; it raises nothing.
        say: is told what is being done, of which study.

    Attributes:
        began: whether the first study was: what fails before concerns all.
        done: how many are finished; after a failure it is the number of the study that failed.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        finish: Finish,
        say: Callable[[str], None],
    ) -> None:
        self._studies = studies
        self._finish = finish
        self._say = say
        self._steps = Steps()
        self.began = False
        self.done = 0

    def attach(self, engine: Engine) -> None:
        # It logs an error that is raised as well, and that is said then.
        engine.logger = logging.Logger("engine", logging.CRITICAL)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._load)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._loaded)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._inferred)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _load(self, engine: Engine) -> None:
        if self.began:
            self._steps = Steps()
        else:  # what was built and loaded for all is a step of the first study
            self._ended("network", engine)
        self.began = True
        self._tell("reading")

    def _loaded(self, engine: Engine) -> None:
        self._ended("reading", engine)
        self._tell("segmenting")

    def _inferred(self, engine: Engine) -> None:
        self._ended("inference", engine)
        self._tell("writing")

    def _completed(self, engine: Engine) -> None:
        (output,) = engine.state.output
        labels = output["pred"]
        self._ended("mask", engine)
        study = self._studies[self.done]
        if len(labels) != 1:
            raise InputError(
                f"{study.file} has {len(labels)} masks by this bundle; allowed is a bundle that "
                "gives one label map."
            )
        engine.state.batch = engine.state.output = None  # as large as the image, and done with
        affine = np.asarray(labels.affine, np.float64)
        self._finish(study, labels[0].numpy(force=True), affine, self._steps)
        self.done += 1

    def _ended(self, step: str, engine: Engine) -> None:
        self._steps.ended(step, str(engine.state.device))

    def _tell(self, step: str) -> None:
        self._say(f"{self._studies[self.done].name}: {step}")
