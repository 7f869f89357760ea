"""MAP: the trained adapter as it is."""

import dataclasses
from typing import ClassVar

from laplace_lora.methods.base import Answers, Fitted, Method, Subject
from laplace_lora.methods.forward import Loader, class_logits


class _Trained(Fitted):
    def answer(self, loader: Loader) -> Answers:
        logits, _ = class_logits(self.subject.model, self.subject.readout, loader)
        return Answers(logits.softmax())


@dataclasses.dataclass(frozen=True)
class Map(Method):
    """The trained adapter: the maximum of the posterior, or of the likelihood where training knew no prior."""

    name: ClassVar[str] = "map"
    title: ClassVar[str] = "MAP"
    along_training: ClassVar[bool] = True

    def fit(self, subject: Subject) -> Fitted:
        """Do nothing.

        Args:
            subject: The adapter.

        Returns:
            One forward pass per data set.
        """
        return _Trained(subject)
